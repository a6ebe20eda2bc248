"""Object storage: objects of a bucket, and nothing else; the only home of obstore. Everywhere else a path stays a path."""
