"""Nielsen's network in NumPy, three ways, as people have it before they come here: sigmoids, quadratic cost, SGD."""

import numpy as np


def sigmoid(z: np.ndarray) -> np.ndarray:
    """σ(z)."""
    return 1 / (1 + np.exp(-z))


def by_the_book(params: list, xs: np.ndarray, ys: np.ndarray, batch: int, learning_rate: float) -> list:
    """An epoch example by example, in float64 and with a new array for every result, as one first writes it down.

    xs: (n, in), ys: (n, out). The manner of Nielsen's book, ch. 1: vectors are columns, each example's gradient is a
    list of matrices, and lists of matrices are added.
    """
    params = [(W.astype(np.float64), b.astype(np.float64)[:, None]) for W, b in params]
    columns = [(x.astype(np.float64)[:, None], y.astype(np.float64)[:, None]) for x, y in zip(xs, ys, strict=True)]
    for start in range(0, len(columns), batch):
        sums = [(np.zeros(W.shape), np.zeros(b.shape)) for W, b in params]
        for x, y in columns[start : start + batch]:
            gradient = gradient_of_one(params, x, y)
            sums = [(W + dW, b + db) for (W, b), (dW, db) in zip(sums, gradient, strict=True)]
        rate = learning_rate / batch
        params = [(W - rate * dW, b - rate * db) for (W, b), (dW, db) in zip(params, sums, strict=True)]
    return params


def gradient_of_one(params: list, x: np.ndarray, y: np.ndarray) -> list:
    """Each layer's (∇_W C, ∇_b C) at one example; x: (in, 1), y: (out, 1)."""
    zs, activations = [], [x]
    for W, b in params:
        zs.append(np.dot(W, activations[-1]) + b)
        activations.append(sigmoid(zs[-1]))
    delta = (activations[-1] - y) * sigmoid(zs[-1]) * (1 - sigmoid(zs[-1]))
    gradient = [(np.dot(delta, activations[-2].T), delta)]
    for l in range(2, len(params) + 1):
        delta = np.dot(params[-l + 1][0].T, delta) * sigmoid(zs[-l]) * (1 - sigmoid(zs[-l]))
        gradient.insert(0, (np.dot(delta, activations[-l - 1].T), delta))
    return gradient


def one_by_one(params: list, xs: np.ndarray, ys: np.ndarray, batch: int, learning_rate: float) -> list:
    """The same made fast: float32, plain vectors, gradients added in place. xs: (n, in), ys: (n, out)."""
    params = [(W.copy(), b.copy()) for W, b in params]
    for start in range(0, len(xs), batch):
        grads = [(np.zeros_like(W), np.zeros_like(b)) for W, b in params]
        for x, y in zip(xs[start : start + batch], ys[start : start + batch], strict=True):
            activations = [x]
            for W, b in params:
                activations.append(sigmoid(W @ activations[-1] + b))
            delta = (activations[-1] - y) * activations[-1] * (1 - activations[-1])
            for l in reversed(range(len(params))):
                dW, db = grads[l]
                dW += np.outer(delta, activations[l])
                db += delta
                if l:
                    delta = (params[l][0].T @ delta) * activations[l] * (1 - activations[l])
        params = stepped(params, grads, learning_rate / batch)
    return params


def batched(params: list, xs: np.ndarray, ys: np.ndarray, batch: int, learning_rate: float) -> list:
    """An epoch in which a batch goes through the network as one matrix. xs: (n, in), ys: (n, out)."""
    params = [(W.copy(), b.copy()) for W, b in params]
    for start in range(0, len(xs), batch):
        activations = [xs[start : start + batch]]
        for W, b in params:
            activations.append(sigmoid(activations[-1] @ W.T + b))
        a = activations[-1]
        delta = (a - ys[start : start + batch]) * a * (1 - a)
        grads = []
        for l in reversed(range(len(params))):
            grads.insert(0, (delta.T @ activations[l], delta.sum(0)))
            if l:
                delta = (delta @ params[l][0]) * activations[l] * (1 - activations[l])
        params = stepped(params, grads, learning_rate / batch)
    return params


def stepped(params: list, grads: list, learning_rate: float) -> list:
    """One step of gradient descent, in place."""
    for (W, b), (dW, db) in zip(params, grads, strict=True):
        W -= learning_rate * dW
        b -= learning_rate * db
    return params
