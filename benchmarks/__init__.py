"""What things cost, beside raw hooks and other libraries: `python -m benchmarks.run --help`.

timing       how: single runs that take turns, in random order
equality     the gate: nothing is timed that does not give the raw forward's numbers
comparison   a row of the table: one task, done by several libraries
subjects     the models · libraries: the others, each on a copy of its own
overhead, bodies, caching, operations, gradients, decoding, growth: the themes
report       text, JSON and markdown · run: the command
"""
