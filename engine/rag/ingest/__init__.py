"""From folders of documents to clean text with structure: walking, reading in a limited child, cleaning, reporting."""
