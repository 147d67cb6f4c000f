"""Random sequences of what people do with a model, judged by a simple picture of what it should show.

    PYTHONPATH=.:tests python -m soak --sequences 100000 --jobs 2
    PYTHONPATH=.:tests python -m soak --seed 4711              that sequence alone, shortened if it fails

`world` has the tiny models, the files and their formulas; `owners` says what each parameter should show; `operations`
are what may happen; `sequence` runs them one after another and looks at everything after each.
"""
