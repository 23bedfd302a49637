"""Words of a command line for the tests."""


def quick(words):
    """The words with PTQD, unless they choose a correction: the default tries several, which takes longer."""
    chosen = any(word.lstrip("+~").split("=")[0] in ("correction", "experiment") for word in map(str, words))
    return list(words) if chosen else ["correction=ptqd", *words]
