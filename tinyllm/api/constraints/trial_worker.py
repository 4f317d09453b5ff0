"""A process that compiles grammars to see whether they can be: run by `trial`, never imported.

Each line of its input is a grammar as JSON; for each it writes a line, the error in JSON or `""`.
It knows bytes and no vocabulary, so that it starts in a moment: what a grammar's patterns cost to
compile doesn't depend on the tokens.
"""

import json
import resource
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules aren't meant
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    seconds, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    tokenizer = LLTokenizer("byte")
    limits = LLParserLimits(verbose_errors=False, max_grammar_size=200_000, step_lexer_fuel=100_000)
    print('""', flush=True)  # ready
    for line in sys.stdin:
        # Should nobody be left to end this process, the system does.
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = int(used.ru_utime + used.ru_stime) + 2 * seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
        matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        print(json.dumps(matcher.get_error() if matcher.is_error() else ""), flush=True)
