"""Where a LoRA acts: pipelines × states × kinds of strength × algorithms, each measured against an independent judge.

    PYTHONPATH=.:tests python -m matrix --write                         all of it, to docs/where-it-acts.md
    PYTHONPATH=.:tests python -m matrix --only Flux --state fused       some cells, printed

`pipelines` are tables of tiny pipelines of diffusers with random weights, `states` what may be done to a pipeline
before a
LoRA is applied, `strengths` the tags and what they mean, `files` the algorithms. `cell.measure` measures one cell.
"""
