"""Where the rules of other packages are checked: physics, probability, optimal transport, quantisation, signals."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.in_the_wild_points import Point, between, matrices, normal, one, root_in_closed_form, spectrum

constant = jax.lax.stop_gradient
TFP = "tensorflow_probability.substrates.jax"
SAMPLER = "implicit reparameterisation, held against −∂F/∂κ over the density; a sampler has no derivative of its own"
AXIS = "needs a named axis of devices"
NO_GRADIENT = "it raises, as meant: no derivative there"


def part(place: str) -> Any:
    """The object "module:name", imported when it is asked for."""
    module, _, names = place.partition(":")
    found = import_module(module)
    for name in names.split(".") if names else ():
        found = getattr(found, name)
    return found


def moved(sample: jax.Array, cdf: Callable, *params: jax.Array) -> jax.Array:
    """A sample whose derivative is that of the quantile function: x with dF(x; θ) = 0."""
    x = constant(sample)
    F, density = cdf(x, *params), jax.grad(lambda x: cdf(x, *constant(params)).sum())(x)
    return x - (F - constant(F)) / constant(density)


def von_mises_cdf(x: jax.Array, k: jax.Array) -> jax.Array:
    """∫ exp(κ cos t) dt / (2π I₀(κ)) from −π to x, by the trapezoidal rule."""
    t = jnp.linspace(0, 1, 4001)[:, None] * (x + np.pi) - np.pi
    values = jnp.exp(k * jnp.cos(t))
    return (values.sum(0) - (values[0] + values[-1]) / 2) * (x + np.pi) / 4000 / (2 * np.pi * jax.scipy.special.i0(k))


def von_mises_sample(shape, k, seed, dtype):
    """The reference of a sampler of the von Mises distribution."""
    return moved(part("distrax._src.distributions.von_mises:_von_mises_sample")(shape, constant(k), seed, dtype),
                 von_mises_cdf, k)  # fmt: skip


def inverse_gaussian_cdf(x: jax.Array, mean: jax.Array, shape: jax.Array) -> jax.Array:
    """Φ(√(λ/x) (x/μ − 1)) + exp(2λ/μ) Φ(−√(λ/x) (x/μ + 1))."""
    root, Phi = jnp.sqrt(shape / x), jax.scipy.special.ndtr
    return Phi(root * (x / mean - 1)) + jnp.exp(2 * shape / mean) * Phi(-root * (x / mean + 1))


def two_piece_normal_cdf(x: jax.Array, skewness: jax.Array) -> jax.Array:
    """Left of 0: 2 Φ(s x) / (1 + s²); right of it: 1 − 2 s² Φ(−x/s) / (1 + s²)."""
    Phi, share = jax.scipy.special.ndtr, 2 / (1 + skewness**2)
    return jnp.where(x < 0, share * Phi(skewness * x), 1 - (2 - share) * Phi(-x / skewness))


def sampled(sampler: str, cdf: Callable, shape, *given):
    """The reference of a sampler of TensorFlow Probability: of its parameters, and a seed at the end."""
    *params, seed = given
    return moved(part(f"{TFP}.distributions.{sampler}")(shape, *constant(params), seed), cdf, *params)


def gamma_sample(concentration: jax.Array, rate: jax.Array) -> jax.Array:
    """TensorFlow Probability's sample of a gamma distribution."""
    return part(f"{TFP}.distributions:Gamma")(concentration, rate).sample(seed=jax.random.PRNGKey(0))


def moved_gamma(concentration: jax.Array, rate: jax.Array) -> jax.Array:
    """Its reference: the distribution function is P(concentration, rate x)."""

    def cdf(x, a, rate):
        return jax.scipy.special.gammainc(a, rate * x)

    return moved(gamma_sample(concentration, rate), cdf, concentration, rate)


def in_box() -> tuple[jax.Array, jax.Array]:
    """A box and five places in it."""
    return jnp.eye(3) + 0.2 * normal(3, 3), normal(5, 3, seed=1)


def in_turned_box(box, R, held: bool):
    """The positions, with the derivative R ↦ box R, or R ↦ R with that of the box."""
    turned = constant(R) @ box.T
    return R + turned - constant(turned) if held else R @ box.T - constant(R @ box.T - R)


def unit_rotation(q, v):
    """A rotation by the quaternion of length 1 beside q."""
    return part("jax_md.rigid_body:_quaternion_rotate_raw")(q / jnp.sqrt(q @ q), v)


def unit(*shape: int) -> jax.Array:
    """A vector of length 1."""
    x = normal(*shape)
    return x / jnp.sqrt(x @ x)


def recursion(x, A, zi):
    """y_t = x_t − Σ_k A_tk y_{t−k}."""
    before = [zi[:, k] for k in range(A.shape[-1])]
    out = []
    for t in range(x.shape[1]):
        out.append(x[:, t] - sum(A[:, t, k] * before[k] for k in range(A.shape[-1])))
        before = [out[-1], *before[:-1]]
    return jnp.stack(out, axis=1)


def complex_normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normally drawn real and imaginary parts."""
    return jax.lax.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 100))


def expectation(function: Callable, p: jax.Array, s: jax.Array) -> jax.Array:
    """The mean of (p · s)² over samples s, by `function`, where log p(s) = −|s − p|²."""
    return function(lambda p, s: -jnp.sum((s - p) ** 2, -1), lambda p, s: (s @ p) ** 2, p, s)


def by_score(log_pdf, value, p, s):
    """A mean with the derivative of an expectation: E[(L − E L) ∇log p + ∇L]."""
    L, log_p = value(p, s), log_pdf(p, s)
    return jnp.mean(L + constant(L - L.mean()) * (log_p - constant(log_p)))


def roots(symmetric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The square root of a matrix and its inverse, by eigenvalues."""
    values, V = jnp.linalg.eigh(symmetric)
    return (V * jnp.sqrt(values)) @ V.T, (V / jnp.sqrt(values)) @ V.T


def root_of(name: str, which: Any) -> Point:
    """One of ott's square roots of a matrix."""

    def call(x):
        return part(f"ott.math.matrix_square_root:{name}")((x + x.T) / 2)[which]

    def reference(x):
        found = roots((x + x.T) / 2)
        return found if name == "sqrtm" else found[name.startswith("inv")]

    return Point(lambda: (spectrum(0),), through=call, reference=reference, tolerance=1e-3)


def iterated(least: int, a: jax.Array, x: jax.Array) -> jax.Array:
    """Six steps of ott's loop of x ← cos(a x), of which so many are always done."""

    def step(i, a, x, error):
        return jnp.cos(a * x)

    loop = part("ott.math.fixed_point_loop:fixpoint_iter_backprop")
    return loop(lambda *_: True, step, least, 6, 2, a, x)


def unrolled(a, x):
    """The same six steps."""
    for _ in range(6):
        x = jnp.cos(a * x)
    return x


def transport(implicit: bool, x: jax.Array, y: jax.Array) -> jax.Array:
    """The cost of optimal transport between two clouds of points, entropy 0.5."""
    solver = part("ott.solvers.linear.sinkhorn:Sinkhorn")
    how = part("ott.solvers.linear.implicit_differentiation:ImplicitDiff")() if implicit else None
    problem = part("ott.problems.linear.linear_problem:LinearProblem")(
        part("ott.geometry.pointcloud:PointCloud")(x, y, epsilon=0.5)
    )
    # One more than the least: with as many, the loop is another one, whose backward pass is wrong.
    return solver(threshold=1e-7, implicit_diff=how, use_danskin=False, min_iterations=190, max_iterations=200)(
        problem
    ).reg_ot_cost


def semidiscrete(rule: bool, g: jax.Array) -> jax.Array:
    """The loss of semidiscrete transport at a potential."""
    problem = part("ott.problems.linear.linear_problem:LinearProblem")(
        part("ott.geometry.pointcloud:PointCloud")(normal(5, 2), normal(4, 2, seed=1), epsilon=0.5)
    )
    loss = part("ott.solvers.linear.semidiscrete:_semidiscrete_loss")
    return (loss if rule else loss.__wrapped__)(g, problem)


def unquantised_product(lhs, rhs):
    """qwix's product with nothing quantised."""
    module = part("qwix._src.core.dot_general_qt")
    return module.dot_general_qt(lhs, rhs, (((1,), (0,)), ((), ())), module.DotGeneralQtConfig())


def unquantised_convolution(lhs, rhs):
    """qwix's convolution with nothing quantised."""
    module = part("qwix._src.core.conv_general_qt")
    return module.conv_general_qt(lhs, rhs, module.ConvGeneralQtConfig(), (2, 1), "SAME", None, None, LAYOUT)


LAYOUT = jax.lax.conv_dimension_numbers((1, 6, 6, 2), (3, 3, 2, 3), ("NHWC", "HWIO", "NHWC"))


def skew(name: str, B: jax.Array) -> Any:
    """A function of fermix' of the skew-symmetric matrix B − Bᵀ: of others it has no derivative."""
    return part(f"fermix:{name}")(B - B.mT)


def backsolved(y0: jax.Array, rate: jax.Array) -> jax.Array:
    """y′ = −rate y t from 0 to 1, by diffrax, solved backwards for the derivative."""
    d = part("diffrax")
    steps = d.PIDController(1e-6, 1e-6)
    equation, adjoint = d.ODETerm(lambda t, y, rate: -rate * y * t), d.BacksolveAdjoint()
    return d.diffeqsolve(
        equation, d.Tsit5(), 0.0, 1.0, 0.05, y0, rate, stepsize_controller=steps, adjoint=adjoint
    ).ys[0]  # fmt: skip


def stepped(y0: jax.Array, rate: jax.Array) -> jax.Array:
    """The same equation by bijx."""
    ends = jnp.array([0.0, 1.0])
    return part("bijx.solvers:_rk4_odeint")(lambda y, t, rate: -rate * y * t, 0.02, y0, ends, rate)


def stepped_on_manifold(y0: jax.Array, rate: jax.Array) -> jax.Array:
    """The same by bijx' other solver, on a flat manifold."""
    cg = part("bijx.cg")
    flat = cg.Euclidean()
    return cg.crouch_grossmann(lambda t, y, rate: -rate * y * t, y0, rate, 0.0, 1.0, 0.02, flat, flat, cg.CG3)


def bessel_by_argument(order, x, d_out):
    """The gradient of galsim's K_ν(x) by x, through its own steps; none by ν."""
    _, slope = jax.jvp(lambda x: part("jax_galsim.bessel:_kv_impl")(order, x), (x,), (jnp.ones_like(x),))
    return jnp.zeros_like(order), d_out * slope


def rooted(a: jax.Array) -> jax.Array:
    """The root of x³ + x = a by optimistix, differentiated implicitly."""
    newton = part("optimistix:Newton")(1e-6, 1e-6)
    return part("optimistix:root_find")(lambda x, a: x**3 + x - a, newton, jnp.ones_like(a), a, max_steps=64).value


def ridge(solved: bool, X: jax.Array, y: jax.Array, penalty: jax.Array) -> jax.Array:
    """The w that makes ½ |X w − y|² + ½ penalty |w|² least, by jaxopt or in closed form."""
    if not solved:
        return jnp.linalg.solve(X.T @ X + penalty * jnp.eye(X.shape[1]), X.T @ y)

    def cost(w, X, y, penalty):
        return 0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * penalty * jnp.sum(w**2)

    solver = part("jaxopt:GradientDescent")(cost, maxiter=2000, tol=1e-6)
    return solver.run(jnp.zeros(X.shape[1]), X, y, penalty).params


def perturbed(declared: bool, x: jax.Array) -> jax.Array:
    """jaxopt's perturbed argmax; or a stand-in with the derivative declared: E[argmax(x + σ Z) ∇ log p(Z)]."""
    module, key = part("jaxopt.perturbations"), jax.random.PRNGKey(0)
    if not declared:
        return module.make_perturbed_argmax(winner, 20, 0.5)(x, key)
    at = constant(x) + 0.5 * module.Gumbel().sample(seed=key, sample_shape=(20, *x.shape))
    log_p = -jnp.sum((at - x) / 0.5 + jnp.exp(-(at - x) / 0.5), -1)
    return jnp.mean(jax.vmap(winner)(at) * (1 + log_p - constant(log_p))[:, None], 0)


def winner(x):
    """The argmax as a vector of zeros and a one."""
    return jax.nn.one_hot(jnp.argmax(x), len(x))


def convolution(lhs, rhs):
    """The same by jax."""
    return jax.lax.conv_general_dilated(lhs, rhs, (2, 1), "SAME", dimension_numbers=LAYOUT)


def least_eigenvalues(solved: bool, diagonal: jax.Array, upper: jax.Array) -> jax.Array:
    """The two least eigenvalues of a symmetric matrix of 3 × 3 blocks, by solvax or as a whole."""
    diagonal = (diagonal + jnp.swapaxes(diagonal, 1, 2)) / 2
    if solved:
        bands, zero, eye = (jnp.zeros_like(upper), diagonal, upper), jnp.zeros_like(upper), jnp.eye(2)
        unit = zero, jnp.broadcast_to(eye, diagonal.shape), zero
        return part("solvax.eigen:generalized_eigenpairs")(bands, unit, -9.0, count=2, tol=1e-5).values
    whole = jax.scipy.linalg.block_diag(*diagonal)
    for k in range(2):
        whole = whole.at[2 * k : 2 * k + 2, 2 * k + 2 : 2 * k + 4].set(upper[k])
        whole = whole.at[2 * k + 2 : 2 * k + 4, 2 * k : 2 * k + 2].set(upper[k].T)
    return jnp.linalg.eigvalsh(whole)[:2]


def largest_eigenvalue(solved: bool, S: jax.Array) -> jax.Array:
    """The largest eigenvalue of a symmetric matrix, by solvax or as a whole."""
    if not solved:
        return jnp.linalg.eigvalsh((S + S.T) / 2)[-1]
    module, n = part("solvax.sparse_direct"), len(S)
    pattern = module.CsrPattern(np.arange(n + 1) * n, np.tile(np.arange(n), n), (n, n))
    found = module.sparse_eigenvalue(
        lambda S, x: (S + S.T) / 2 @ x, S, pattern, S.reshape(-1), 20.0, candidates=2, residual_tolerance=1e-3
    )
    return found.value.real


def softmax_alone(x, normalize):
    """Softmax, with what it keeps for other blocks held constant."""
    top = x.max(-1, keepdims=True)
    return jax.nn.softmax(x, -1), constant((top[..., 0], jnp.exp(x - top).sum(-1)))


def tfp(module: str, point: Point) -> dict[str, Point]:
    """A point of a rule of TensorFlow Probability on JAX."""
    return {f"{TFP}.{module}": point}


def sampler(place: str, cdf: Callable) -> dict[str, Point]:
    """The point of a sampler of TensorFlow Probability."""
    reference = partial(sampled, place, cdf)
    return tfp(
        f"distributions.{place.replace(':', '.')}", Point(None, reference=reference, tolerance=1e-3, note=SAMPLER)
    )


KEPT = "what softmax keeps for other blocks has no derivative, as meant"
SOFTMAX = Point(lambda: (normal(4, 5), True), intended=softmax_alone, note=KEPT)
GRADIENTS_OF_BOX = Point(in_box, intended=partial(in_turned_box, held=False), note="as declared: gradients in the box")

POINTS: dict[str, Point] = {
    "chebax._src.recipes.quantiles._dPda": Point(None, note=NO_GRADIENT),
    "chebax._src.series._pw_chebval": Point(lambda: (between(0.1, 1.9, 7), normal(2, 5), (0.0, 1.0, 2.0))),
    "distrax._src.distributions.von_mises._von_mises_sample": Point(
        lambda: ((4,), between(0.5, 3, 4), jax.random.PRNGKey(0), jnp.dtype("float32")),
        reference=von_mises_sample, tolerance=1e-3, note=SAMPLER,
    ),
    "e3nn_jax._src.spherical_harmonics._custom_jvp_spherical_harmonics": Point(
        lambda: ((1, 2, 3), normal(4, 3), "component", ("recursive", "dense", "custom_jvp"))
    ),
    "e3nn_jax._src.utils.einsum.einsum": Point(lambda: ("ij,jk->ki", normal(3, 4), normal(4, 5, seed=1))),
    "jax_md._energy.electrostatics.transform_gradients": GRADIENTS_OF_BOX,
    "jax_md.mm_forcefields.nonbonded.electrostatics.transform_gradients": GRADIENTS_OF_BOX,
    "jax_md.space.transform": Point(
        in_box, intended=partial(in_turned_box, held=True), note="as declared: forces in real space"
    ),
    "jax_md.rigid_body._quaternion_rotate": Point(
        lambda: (unit(4), normal(3, seed=1)), intended=unit_rotation, note="as declared: along the unit sphere"
    ),
    "jax_md._nn.uma.kernels._segment_mm_2d": Point(
        lambda: (normal(7, 3), normal(2, 4, 3, seed=1), jnp.array([3, 4], jnp.int32))
    ),
    **{f"fermix._diff._{name}_diff.<locals>.f": Point(lambda: (normal(2, 8, 8),), through=partial(skew, name))
       for name in ("pf", "slogpf")},
    "diffrax._adjoint._loop_backsolve": Point(
        lambda: (between(0.5, 2, 3), between(0.3, 1.5, 3, seed=1)), through=backsolved,
        reference=lambda y0, rate: y0 * jnp.exp(-rate / 2), tolerance=1e-3, note="within the solver's own error",
    ),
    "bijx.cg._crouch_grossmann": Point(
        lambda: (between(0.5, 2, 3), between(0.3, 1.5, 3, seed=1)), through=stepped_on_manifold,
        reference=lambda y0, rate: y0 * jnp.exp(-rate / 2), tolerance=1e-3, note="within the solver's own error",
    ),
    "bijx.solvers._rk4_odeint": Point(
        lambda: (between(0.5, 2, 3), between(0.3, 1.5, 3, seed=1)), through=stepped,
        reference=lambda y0, rate: y0 * jnp.exp(-rate / 2), tolerance=1e-3, note="within the solver's own error",
    ),
    "jax_galsim.bessel.kv": Point(
        lambda: (jnp.float32(0.7), jnp.float32(1.3)), intended=bessel_by_argument,
        note="as declared: no derivative by the order",
    ),
    "optimistix._ad._implicit_impl": Point(
        lambda: (between(0.5, 3, 4),), through=rooted, reference=root_in_closed_form, tolerance=1e-5
    ),
    "jaxopt._src.implicit_diff._custom_root.<locals>.make_custom_vjp_solver_fun.<locals>.solver_fun_flat": Point(
        lambda: (normal(6, 3), normal(6, seed=1), jnp.float32(0.7)),
        through=partial(ridge, True), reference=partial(ridge, False), tolerance=1e-3,
        note="within the solver's own error",
    ),
    "jaxopt._src.perturbations.make_perturbed_argmax.<locals>.forward_pert": Point(
        lambda: (normal(4),), through=partial(perturbed, False), intended=partial(perturbed, True),
        note="as declared: the derivative of the expectation, by samples",
    ),
    "jaxopt._src.isotonic._isotonic_l2_pav": Point(None, note="its function does not run with this numba"),
    "jaxopt._src.projection._projection_unit_sparse_simplex": Point(lambda: (between(0, 0.5, 6), 3, False)),
    "jaxpole.filter.allpole": Point(
        lambda: (complex_normal(2, 6), 0.3 * complex_normal(2, 6, 3, seed=1), complex_normal(2, 3, seed=2)),
        reference=recursion, note="complex numbers; with real ones it is right",
    ),
    "kfac_jax._src.utils.math._sqrt_bound_derivative": Point(lambda: (between(0.2, 3, 4, 5), 1000.0)),
    "mujoco.mjx._src.collision_sdf._cylinder": Point(lambda: (jnp.array([1.2, 0.7, 0.9]), jnp.array([0.5, 0.4]))),
    "netket.jax._expect._expect": Point(
        lambda: (normal(3), normal(8, 3, seed=1)),
        through=partial(expectation, lambda *args: part("netket.jax:expect")(*args)[0]),
        reference=partial(expectation, by_score),
    ),
    "numpyro.distributions.util.log1mexp": one(-3, -0.1),
    "ott.math.fixed_point_loop.fixpoint_iter_backprop": Point(
        lambda: (between(0.5, 0.9, 3), between(0.2, 0.9, 3, seed=1)),
        through=partial(iterated, 6), reference=unrolled, tolerance=1e-5,
        note="min_iterations = max_iterations, a scan; with fewer it is right",
    ),
    "ott.math.matrix_square_root.sqrtm": root_of("sqrtm", slice(0, 2)),
    "ott.math.matrix_square_root.sqrtm_only": root_of("sqrtm_only", ...),
    "ott.math.matrix_square_root.inv_sqrtm_only": root_of("inv_sqrtm_only", ...),
    "ott.math.utils.lambertw": one(0.2, 3),
    "ott.math.utils.logsumexp": Point(lambda: (normal(4, 5), 1, True, between(0.2, 1, 4, 5, seed=1))),
    "ott.math.utils.norm": Point(lambda: (normal(4, 5), None, 1, False)),
    "ott.math.utils.softmin": Point(lambda: (normal(4, 5), jnp.float32(0.3), 1)),
    "ott.solvers.linear.semidiscrete._semidiscrete_loss": Point(
        lambda: (normal(4),), through=partial(semidiscrete, True), reference=partial(semidiscrete, False)
    ),
    "ott.solvers.linear.sinkhorn._iterations_implicit": Point(
        lambda: (normal(5, 2), normal(4, 2, seed=1)),
        through=partial(transport, True), reference=partial(transport, False), tolerance=1e-3,
    ),
    "qwix._src.core.conv_general_qt.conv_general_qt": Point(
        lambda: (normal(1, 6, 6, 2), normal(3, 3, 2, 3, seed=1)), through=unquantised_convolution, reference=convolution
    ),
    "qwix._src.core.dot_general_qt.dot_general_qt_fwd_bwd": Point(
        lambda: (normal(4, 5), normal(5, 3, seed=1)), through=unquantised_product, reference=jnp.matmul
    ),
    "qwix._src.core.ragged_dot_qt.ragged_dot_qt": Point(None, note="it always rounds: no autodiff to hold it against"),
    "s2fft.transforms.c_backend_spherical.ssht_forward": Point(None, note="needs a library in C"),
    "s2fft.transforms.c_backend_spherical.ssht_inverse": Point(None, note="needs a library in C"),
    "solvax.direct._block_thomas_truncated_bounded": Point(
        lambda: (0.3 * normal(6, 3, 3), normal(6, 3, 3, seed=1) + 5 * jnp.eye(3), 0.3 * normal(6, 3, 3, seed=2),
                 normal(2, 3), 2, 4)
    ),
    "solvax.eigen._attach": Point(
        lambda: (3 * normal(3, 2, 2), normal(3, 2, 2, seed=1)), tolerance=1e-3,
        through=partial(least_eigenvalues, True), reference=partial(least_eigenvalues, False),
    ),
    "solvax.sparse_direct._eigenvalue": Point(
        lambda: (spectrum(0),), tolerance=1e-3,
        through=partial(largest_eigenvalue, True), reference=partial(largest_eigenvalue, False),
    ),
    "tokamax._src.benchmarking._optimization_barrier": matrices(4, 5),
    "tokamax._src.ops.attention.base._softmax": SOFTMAX,
    "tokamax._src.ops.flex_attention.base._softmax": SOFTMAX,
    "tensorflow_probability.python.internal.backend.jax.numpy_math._minimum_": Point(
        lambda: (normal(4, 5), normal(4, 5, seed=1))
    ),
    **tfp(
        "distributions.mixture_same_family._MixtureSameFamily._reparameterize_sample.<locals>.<lambda>",
        Point(None, intended=constant, note="as declared: a constant, that forbids the second derivative"),
    ),
    **tfp("internal.custom_gradient._prevent_gradient_helper", Point(None, note=NO_GRADIENT)),
    **tfp("internal.distribute_lib.rwb_pbroadcast", Point(None, note=AXIS)),
    **tfp("internal.distribute_lib.rwb_psum", Point(None, note=AXIS)),
    **tfp("distributions.gamma._random_gamma_gradient", Point(
        lambda: (between(0.5, 3, 4), between(0.5, 3, 4, seed=1)), tolerance=1e-3, note=SAMPLER,
        through=gamma_sample, reference=moved_gamma,
    )),
    **sampler("inverse_gaussian:_random_inverse_gaussian_gradient", inverse_gaussian_cdf),
    **sampler("two_piece_normal:_two_piece_normal_sample_with_gradient", two_piece_normal_cdf),
    **sampler("von_mises:_von_mises_sample_with_gradient", von_mises_cdf),
}  # fmt: skip
