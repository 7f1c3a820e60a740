"""Delta tables at a version, and the Spark Connect endpoint that transforms them."""
