"""How a scene is shown to a model in PyTorch, a file a kind.

Each has one function: `presenter(recipe, checkpoint, model) -> Presenter`.
"""
