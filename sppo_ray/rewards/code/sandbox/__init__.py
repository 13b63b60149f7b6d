"""Run Python programs that a model wrote, for the verifier `code`.

    run.py --Popen--> program.py: a script from stdin to stdout; confined; what it should print is not there
    run.py --Popen--> served.py:  a module, confined; sees neither tests nor expected values
           '-Popen--> tester.py:  the row's tests; confined as well, out of the program's reach
                        '--wire.py--> calls the functions under test; only plain values come back
    run.py --Popen--> plain.py:   both in one process, by pytest: what has passed has to pass again

In one interpreter a program could make tests pass: with an object that equals everything, a patched
`assert`, sys.exit(0), or by printing the expected output. Here a program can only return values.
Existing sandboxes need a server, a container engine or a kernel of 6.12 and later.
"""  # noqa: W505 (a drawing)
