"""The KServe target: revisions as InferenceServices of a cluster, behind a route of our own.

Owns: what a set of revisions is in Kubernetes, the order in which it is brought about, what the cluster's objects
report about it. Does not own: the strategy (`rollout/strategy.py`), a cluster's client and its credentials.

    cluster.py     where revisions serve: names, the mode and what it can carry
    manifests.py   a set of revisions as objects: pure
    reading.py     objects of the cluster as what serves, what is ready, why something is not: pure
    steps.py       what is to be done next: pure
    bundle.py      the files of a revision in the home, as its Pods mount them
    target.py      carrying the steps out, with a deadline
    client.py      requests to the API server

It is built on what released controllers do (0.20.0), not on what their API suggests: `spec.canary` is given no traffic
there and its promotion has a gap, so each revision is an InferenceService of its own and an HTTPRoute of ours has the
weights. Decision 029.
"""
