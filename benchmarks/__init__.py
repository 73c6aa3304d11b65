"""What the product costs on the request path, beside its peers in the same run: `make bench`."""
