"""The pass over pixels, on executors: pointers to decoded images to vectors and scores."""
