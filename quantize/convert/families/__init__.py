"""One file per model family: tables for the converter, and the transforms that only that family needs."""
