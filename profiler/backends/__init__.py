"""One file a backend: it opens a case and gives a session that prefills and decodes."""
