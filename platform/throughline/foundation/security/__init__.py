"""Who calls whom: principals, tokens, the hosts and origins of requests, the home that a service belongs to."""
