"""Which release this is. The packaging metadata holds the same number; a test compares them."""

RELEASE = "0.1.0"
