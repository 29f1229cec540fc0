"""From raw datasets to the file that a stage trains on: `megatron-rl data build`.

    sources -> step -> step -> ... -> OUTPUT/NAME.jsonl     a step leaves a problem out, with a reason, or passes it on

`recipe` says which, `steps` lists them, `build` runs them and writes what came of it.
"""
