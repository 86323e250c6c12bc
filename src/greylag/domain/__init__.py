"""What Greylag is about, in plain Python: no HTTP, no database, no Kubernetes."""
