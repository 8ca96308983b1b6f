"""From files of text to a token stream, in many processes, to be gone on with when killed.

`files` says what is read, `documents` reads it, `shard` makes one file of tokens, `job` all of
them. `published` indexes streams that others made.
"""
