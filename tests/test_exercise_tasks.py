"""The exercise's tasks: the table of answers is the checker's, and the planted mistakes are mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import notation, observe
from jaxnet.explaining.exercise import exercise
from jaxnet.explaining.exercise_tasks import LETTERS, asked_tasks, judged, near, tasks_of
from jaxnet.explaining.expressions import written
from jaxnet.explaining.notation import ExplainError
from jaxnet.layers import dense, relu, sigmoid, softmax, tanh
from jaxnet.losses import quadratic, softmax_cross_entropy

NETS = {
    "relu": (jaxnet.serial(dense(3), relu, dense(2), sigmoid), quadratic),
    "three": (jaxnet.serial(dense(4), tanh, dense(3), tanh, dense(2), softmax), quadratic),
    "logits": (jaxnet.serial(dense(3), relu, dense(3)), softmax_cross_entropy),
    "one": (jaxnet.serial(dense(2), sigmoid), quadratic),
}
SYMBOLS = [notation(), notation("ng", 0, "in-out")]


def observed(name):
    net, loss = NETS[name]
    x, y = jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 1.0, 0.0][: 3 if name == "logits" else 2])
    return observe(net, loss, jaxnet.initialize(net, loss, jnp.zeros(2, jnp.uint32), x), x, y)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("symbols", SYMBOLS, ids=["column", "row"])
def test_every_task_has_one_right_answer(name, symbols):
    """The right answer passes at once; every other gets its hints in order and is told from the right one."""
    for task in tasks_of(observed(name), symbols, 0).tasks:
        right = [each for each in task.answers if not each.hints]
        assert len(right) == 1, task
        assert len({each.text for each in task.answers}) == len(task.answers) >= 2
        for i, each in enumerate(task.answers):
            text = " ".join(f"{v:.3f}" for v in np.ravel(each.value)) if task.shape else LETTERS[i]
            for attempt in range(3):
                said, passed = judged(task, text, attempt)
                assert passed == (each is right[0])
                assert said == (f"Right. {task.solution}" if passed else each.hints[min(attempt, len(each.hints) - 1)])
            if task.shape and each is not right[0]:
                assert not near(each.value, right[0].value)


def jax_gradients(made):
    """∇W³ and δ² of the relu network, at the numbers that are given."""
    given = {written(symbol): jnp.asarray(value) for symbol, value in made.given}

    def cost(W3, b2):
        a2 = jax.nn.relu(given["W²"] @ given["x"] + b2)
        a3 = jax.nn.sigmoid(W3 @ a2 + given["b³"])
        return 0.5 * jnp.sum((a3 - given["y"]) ** 2)

    return jax.grad(cost, (0, 1))(given["W³"], given["b²"])


def test_the_right_numbers_are_jax_grad_s():
    made = tasks_of(observed("relu"), SYMBOLS[0], 3)
    dW3, delta2 = jax_gradients(made)
    found = [task.answers[0].value for task in made.tasks if task.shape]
    np.testing.assert_allclose(found[0], delta2, atol=1e-6)
    np.testing.assert_allclose(found[1], dW3, atol=1e-6)


def test_the_sign_is_jax_grad_s():
    signs = set()
    for seed in range(4):
        made = tasks_of(observed("relu"), SYMBOLS[0], seed)
        sign = made.tasks[0]
        row, column = ("₁₂₃".index(digit) for digit in sign.question.partition(" is raised")[0].removeprefix("W³"))
        [right] = [each.text for each in sign.answers if not each.hints]
        assert right == ("C rises" if jax_gradients(made)[0][row, column] > 0 else "C falls")
        signs.add(right)
    assert len(signs) == 2


def test_mistakes_are_named_by_the_checker():
    hints = {
        each.text: each.hints for task in tasks_of(observed("three"), SYMBOLS[0], 0).tasks for each in task.answers
    }
    assert hints["delta4 @ z3.T"][1] == "a3.T stands where z3.T stood"
    assert hints["a3 @ delta4.T"][0] == "the value is ∇W⁴ transposed, 3×2 for 2×3"
    assert hints["(W3.T @ delta3)"][1] == "tanh'(z2) was missing"


def test_other_numbers_and_nonsense_get_hints():
    task = next(task for task in tasks_of(observed("relu"), SYMBOLS[0], 0).tasks if task.shape == (3,))
    assert judged(task, "1 2", 0) == ("answer with 3 numbers, got 2", None)
    assert judged(task, "9 9 9", 0)[0] == f"0 of 3 numbers are right. {task.hints[0]}"
    assert judged(task, "9 9 9", 5)[0].endswith(task.hints[-1])


def test_in_the_terminal_answers_are_counted():
    made = tasks_of(observed("relu"), SYMBOLS[0], 0)
    answers = iter(
        " ".join(f"{v:.3f}" for v in task.answers[0].value.ravel()) if task.shape
        else LETTERS[next(i for i, each in enumerate(task.answers) if not each.hints)]
        for task in made.tasks
    )  # fmt: skip
    said = list(exercise(asked_tasks(made), ask=lambda prompt: next(answers)))
    assert said[-1] == f"{len(made.tasks)} of {len(made.tasks)} right at once"
    right = LETTERS[next(i for i, each in enumerate(made.tasks[0].answers) if not each.hints)]
    answers = iter(["Z", "1", "Z", "Z", right, "q"])  # none of the first four is an answer
    said = list(exercise(asked_tasks(made), ask=lambda prompt: next(answers)))
    assert said[-1] == "1 of 1 right at once"
    answers = iter([right, "q"])  # q ends the parts that follow too
    assert list(exercise(asked_tasks(made), asked_tasks(made), ask=lambda prompt: next(answers)))[-1] == said[-1]
    assert said[0] == made.network == "2 → 3 relu → 2 sigmoid   C = ½‖a³−y‖²"
    assert max(map(len, said[: len(made.given)])) < 60


def test_a_wide_network_has_no_exercise():
    net = jaxnet.serial(dense(9), sigmoid)
    params = jaxnet.initialize(net, quadratic, jnp.zeros(2, jnp.uint32), jnp.ones(2))
    with pytest.raises(ExplainError, match="at most 4 units"):
        tasks_of(observe(net, quadratic, params, jnp.ones(2), jnp.zeros(9)), SYMBOLS[0], 0)
