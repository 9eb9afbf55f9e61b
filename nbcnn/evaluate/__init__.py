"""`nbcnn.evaluate(model, dataset)`; the command `nbcnn evaluate`, or `python -m nbcnn.evaluate`, is in `__main__.py`.

If the command were a module nbcnn/evaluate.py, importing it would replace the function `nbcnn.evaluate` by the module.
"""
from nbcnn.evaluation import evaluate
