"""`python -m loadtests`: gevent first, then the command.

Locust patches the standard library when it is imported. After another library has started threads, as reading a Delta
table does, that import never returns; so the process is patched before anything else is imported.
"""

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

    import os
    import sys

    from loadtests.command import main

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # the runtime of the Delta reader waits at exit for threads that gevent has patched away
    os._exit(code)
