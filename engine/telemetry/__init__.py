"""What the machine does: samples of host and accelerators, kept in a ring, taken by one daemon thread."""
