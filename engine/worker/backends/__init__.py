"""What runs models inside a worker child, behind one protocol; each backend is imported only when it is chosen."""
