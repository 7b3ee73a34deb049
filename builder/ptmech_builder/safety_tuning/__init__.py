"""Make the demo family's later stage: a small instruct model, post-trained to refuse.

Run ``python -m ptmech_builder.safety_tuning --out DIR --seed 0 --seed 1``. Every run, a recipe with
a seed, is trained and judged into a folder of its own below DIR; the best of all runs there, on the
validation prompts, is copied to ``DIR/chosen`` together with the record of all of them. A run whose
record is already there is not repeated. The prompts that judge are never trained on, and the test
prompts never choose.
"""
