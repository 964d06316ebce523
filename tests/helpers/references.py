"""A small reference for tests: `write` writes its file, `text` returns the content of the file."""

HEAD = '''
title = "Tiny"
paper = "Nobody 2026, On nothing"
source = "Table 1"
url = "https://example.org/paper"
code = "https://example.org/code"
seeds = 16
notes = ["Their digits are | hand-written."]

[tolerance]
widest = 2.0

[experiment]
benchmark = "split-mnist-5k"
model = "mlp:width=16:depth=1"
seeds = 2

[experiment.recipe]
iterations = 15
batch_size = 32
'''
CELLS = ('scenario = "task"\nmethod = { name = "naive" }\npublished = 90.0\nsem = 0.5',
         'scenario = "class"\nmethod = { name = "naive" }\npublished = 20.0\nsd = 4.0\nrecipe = { lr = 3e-3 }',
         'scenario = "class"\nmethod = { name = "er", label = "er-20", options = { capacity = 20 } }\n'
         'published = 60.0\nallowance = 0.5\nreason = "without its spread"')


def text(head=HEAD, cells=CELLS):
    return "\n[[cells]]\n".join([head, *cells])


def write(folder, **parts):
    path = folder / "tiny.toml"
    path.write_text(text(**parts))
    return path
