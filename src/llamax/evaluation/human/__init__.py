"""Blind side-by-side human evaluation: plan a study, collect answers, serve the page, analyse the votes.

A study is one folder:

    plan.json        what is compared, on which prompts, by how many raters; sealed by a hash (`plan`)
    raters/*.jsonl   one file per rater, one line per vote, appended as they come (`store`)
    analysis.json    what came out (`analyse`)

The way of the data: `prompts` -> `answers` (a file per model) -> `plan` -> `page` (which shows no model's name) ->
`store` -> `analyse`.
"""
