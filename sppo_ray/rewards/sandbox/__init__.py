"""Running Python that a model wrote: what the verifier `code` stands on.

    run.py --Popen--> program.py: a script from stdin to stdout; confined; what it should print is not there
    run.py --Popen--> served.py:  a module, confined; sees neither tests nor expected values
           '-Popen--> tester.py:  the row's tests; confined as well, out of the program's reach
                        '--wire.py--> calls the program's functions; only plain values come back

A test that ran beside the program in one interpreter could be talked into passing: by an object that equals everything, by
another `assert`, by sys.exit(0), by printing what the harness waits for. Here the program can do nothing but return values.
Own code, because what exists needs a server, a container engine or a kernel of 6.12 and later.
"""
