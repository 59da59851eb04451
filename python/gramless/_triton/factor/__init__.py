"""The factor of two unembeddings, and squared distances of rows by it."""
