"""`nbcnn.evaluate(model, dataset)`, and in `__main__.py` the command `nbcnn evaluate`, or `python -m nbcnn.evaluate`.

The command is not in a module nbcnn/evaluate.py: importing that would put the module in the place of the function.
"""
from nbcnn.evaluation import evaluate
