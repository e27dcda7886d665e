"""The command line. `main` knows the commands, and each has a file that declares and runs it.

What a command needs beyond its flags is imported when it runs, so that `localprop --help` does
without torch.
"""
