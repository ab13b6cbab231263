"""The definitions as slow, plain code. It shares nothing with the package."""

import numpy as np
import torch


def projected_alpha(weight, quantized, gram, start, ridge):
    """Eq 9 with the projector on the null space formed explicitly; float64, row by row."""
    vectors = torch.linalg.eigh(gram)[1].flip(1)
    null = vectors[:, start:]
    projector = null @ null.T
    target = weight - (weight - quantized) @ projector
    rows = zip(quantized, target, strict=True)
    return torch.stack([(q @ h + ridge) / (q @ q + ridge) for q, h in rows])


def minimised_alpha(weight, quantized, gram, start, ridge):
    """The minimiser of Eq 8, found by L-BFGS on the loss as it is written down."""
    null = torch.linalg.eigh(gram)[1].flip(1)[:, start:]
    target = weight - (weight - quantized) @ (null @ null.T)
    alpha = torch.full((len(weight),), 0.3, dtype=weight.dtype, requires_grad=True)

    def loss():
        fit = ((target - alpha[:, None] * quantized) ** 2).sum()
        return fit + ridge * ((alpha - 1) ** 2).sum()

    return _lbfgs(loss, alpha)


def _lbfgs(loss, parameter):
    optimizer = torch.optim.LBFGS(
        [parameter],
        max_iter=500,
        tolerance_grad=1e-13,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return parameter.detach()


def adam_alpha(weight, quantized, gram, start, ridge, steps=20, rate=2e-3):
    """The solver of the released Q2N code: Adam on the loss of Eq 8 with autograd, from ones."""
    null = torch.linalg.eigh(gram)[1].flip(1)[:, start:]
    target = weight - (weight - quantized) @ (null @ null.T)
    alpha = torch.ones(len(weight), dtype=weight.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        fit = ((target - alpha[:, None] * quantized) ** 2).sum()
        (fit + ridge * ((alpha - 1) ** 2).sum()).backward()
        optimizer.step()
    return alpha.detach()


def paper_start(values, threshold):
    """How many leading directions Eq 6 keeps; `k` counts from 1 as in the paper."""
    mu = list(values[1:])
    for k in range(1, len(mu) + 1):
        if sum(mu[:k]) > 0 and sum(mu[k:]) / sum(mu[:k]) <= threshold:
            return k + 1
    return 1


def released_start(values, threshold):
    """The same by the index of the released code, where one value belongs to neither sum."""
    s = list(values[1:])
    for j in range(len(s) - 1):
        if sum(s[: j + 1]) > 1e-12 and sum(s[j + 2 :]) / sum(s[: j + 1]) <= threshold:
            return j + 2
    return 0


def minmax(values, bits, symmetric, storage=np.float32):
    """Scale and zero point of each row of `values` from its range, which includes 0."""
    top = 2**bits - 1
    scales, zeros = [], []
    for row in values:
        lo, hi = min(0.0, row.min()), max(0.0, row.max())
        if symmetric:
            hi = max(abs(lo), hi)
            lo = -hi
        if lo == 0 and hi == 0:
            lo, hi = -1.0, 1.0
        scale = float(storage((hi - lo) / top))
        scales.append(scale)
        zeros.append(2 ** (bits - 1) if symmetric else float(np.clip(np.rint(-lo / scale), 0, top)))
    return np.array(scales), np.array(zeros)


def rtn(values, scale, zero, bits):
    """Round to nearest: `s (clamp(round(x / s) + z, 0, 2^b - 1) - z)`."""
    return scale * (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero)


def gptq(
    weight,
    gram,
    *,
    bits,
    group_size,
    symmetric,
    act_order,
    static_groups,
    damping,
    parameters=None,
):
    """GPTQ from its definition: explicit inverse, Cholesky factor, and an update of all later
    columns after each column. `parameters`: scale and zero of each group, None: min-max. A column
    without input gets the mean of the others on the diagonal
    and keeps its weight. Returns the dequantized weight, for each visited column the
    working copy before that column was rounded, and the order of the columns."""
    work = weight.copy()
    rows, m = weight.shape
    size = m if group_size == -1 else group_size
    energy = np.diag(gram)
    gram = gram + np.diag(np.where(energy == 0, energy[energy > 0].mean(), 0.0))
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(m)
    parameters = parameters or {
        g: minmax(weight[:, g * size : (g + 1) * size], bits, symmetric)
        for g in range(-(-m // size))
    }
    work = work[:, order]
    damped = gram[np.ix_(order, order)] + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    quantized = np.zeros_like(work)
    history = []
    for j in range(m):
        history.append(work.copy())
        group = order[j] // size
        if not static_groups and j % size == 0:
            parameters[group] = minmax(work[:, j : j + size], bits, symmetric)
        quantized[:, j] = rtn(work[:, j], *parameters[group], bits)
        error = (work[:, j] - quantized[:, j]) / upper[j, j]
        work[:, j:] -= np.outer(error, upper[j, j:])
    back = np.argsort(order)
    return quantized[:, back], [state[:, back] for state in history], order


def working_copy(weight, quantized, gram, order, damping, block):
    """W as Q2N's released code sees it after GPTQ's loop over blocks of columns, which gave
    `quantized`: float64, numpy."""
    m = len(gram)
    hessian = gram[np.ix_(order, order)] + damping * np.diag(gram).mean() * np.eye(m)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    w, q = weight[:, order].copy(), quantized[:, order]
    for a in range(0, m, block):
        b = min(a + block, m)
        w1, errors = w[:, a:b].copy(), np.zeros((len(w), b - a))
        for i in range(b - a):
            errors[:, i] = (w1[:, i] - q[:, a + i]) / upper[a + i, a + i]
            w1[:, i:] -= errors[:, i : i + 1] * upper[a + i, a + i : b]
        w[:, b:] -= errors @ upper[a:b, b:]
    copy = np.empty_like(w)
    copy[:, order] = w
    return copy


def mse_clip_error(values, bits, symmetric):
    """The smallest `sum |error|^2.4` of GPTQ's clip search on one group."""
    lo, hi = min(0.0, values.min()), max(0.0, values.max())
    if symmetric:
        hi = max(abs(lo), hi)
        lo = -hi
    best = np.inf
    for step in range(80):
        shrink = 1 - step / 100
        scale = float(np.float32(shrink * (hi - lo) / (2**bits - 1)))
        zero = 2 ** (bits - 1) if symmetric else np.rint(-shrink * lo / scale)
        best = min(best, (np.abs(rtn(values, scale, zero, bits) - values) ** 2.4).sum())
    return best


def minimised_output_alpha(weight, quantized, x, x_full, size, ridge):
    """One factor per row and group of `size` columns that minimises `|W x_full - Q x|^2` plus
    the ridge over all tokens, by L-BFGS. Rows are independent; dividing each row's loss by its
    energy only makes them equally large."""
    group = torch.arange(weight.shape[1]) // size
    count = int(group[-1]) + 1
    target = x_full @ weight.T
    energy = ((x @ quantized.T) ** 2).sum(0)
    alpha = torch.full((len(weight), count), 0.3, dtype=weight.dtype, requires_grad=True)

    def loss():
        misfit = ((target - x @ (alpha[:, group] * quantized).T) ** 2).sum(0)
        hold = ridge * energy / count * ((alpha - 1) ** 2).sum(1)
        return ((misfit + hold) / energy).sum()

    return _lbfgs(loss, alpha)


def least_squares_output_alpha(weight, quantized, x, x_full, size, ridge):
    """The same by a least-squares fit per row: one regressor per group, and one additional
    observation per group for the ridge. The change of least norm if the fit is not unique."""
    rows, m = weight.shape
    alpha = []
    for i in range(rows):
        parts = [x[:, a : a + size] @ quantized[i, a : a + size] for a in range(0, m, size)]
        regressors = np.stack([part.numpy() for part in parts], 1)
        count = regressors.shape[1]
        hold = np.sqrt(ridge * (regressors.sum(1) ** 2).sum() / count)
        missing = (x_full @ weight[i]).numpy() - regressors.sum(1)
        change = np.linalg.lstsq(
            np.concatenate([regressors, hold * np.eye(count)]),
            np.concatenate([missing, np.zeros(count)]),
            rcond=None,
        )[0]
        alpha.append(1 + change)
    return torch.from_numpy(np.array(alpha))


def filtered_output_alpha(
    weight, quantized, x, x_full, size, ridge, directions, threshold, everything=None
):
    """The same with the residual weighted along the eigenvectors of `sum x x^T`, by one linear
    system per row. `everything`: tokens whose eigenvectors are used instead of those of `x`."""
    basis = (x if everything is None else everything).double().numpy()
    weight, quantized, x, x_full = (t.double().numpy() for t in (weight, quantized, x, x_full))
    gram, cross = x.T @ x, x_full.T @ x
    values, vectors = np.linalg.eigh(basis.T @ basis)
    order = np.argsort(-values)
    values, vectors = values[order].clip(min=0), vectors[:, order]
    start = paper_start(values.tolist(), threshold)
    if directions == "principal":
        share = np.array([float(k < start) for k in range(len(values))])
    else:
        share = values / (values + values[start - 1])
    f = sum(w * np.outer(u, u) for w, u in zip(share, vectors.T, strict=True))
    blocks = [slice(a, a + size) for a in range(0, weight.shape[1], size)]
    root = sum(w**0.5 * np.outer(u, u) for w, u in zip(share, vectors.T, strict=True))
    filtered, goal = root @ gram @ root, weight @ cross @ f
    alpha = []
    for q, t in zip(quantized, goal, strict=True):
        matrix = np.array([[q[h] @ filtered[h, k] @ q[k] for k in blocks] for h in blocks])
        right = np.array([t[h] @ q[h] for h in blocks])
        hold = ridge * (q @ filtered @ q) / len(blocks) * np.eye(len(blocks))
        alpha.append(np.linalg.solve(matrix + hold, right + hold.sum(1)))
    return torch.from_numpy(np.array(alpha))


def minimised_correction(weight, x, x_full, ridge, lack=0.0):
    """The W' that minimises `|W x_full + lack - W' x|^2 + ridge |W' - W|^2` over all tokens, by
    L-BFGS; `ridge` is relative to the mean energy of an input channel."""
    hold = ridge * (x**2).sum() / x.shape[1]
    corrected = weight.clone().requires_grad_()
    target = x_full @ weight.T + lack

    def loss():
        misfit = ((target - x @ corrected.T) ** 2).sum()
        return misfit + hold * ((corrected - weight) ** 2).sum()

    return _lbfgs(loss, corrected)


def adam_refit(codes, scale, zero, size, norm, inputs, target, rates, steps):
    """Scales of one linear and the norm weights before it, after Adam on the mean squared error
    of its outputs. Parameters are relative changes; every gradient is written out in float64.
    Returns scales, norm weights and the loss of every step."""
    levels, scale, norm = codes.double(), scale.double(), norm.double()
    inputs, target = inputs.double(), target.double()
    group = torch.arange(codes.shape[1]) // size
    levels = levels - zero.double()[:, group]
    changes = [torch.zeros_like(scale), torch.zeros_like(norm)]
    first = [torch.zeros_like(x) for x in changes]
    second = [torch.zeros_like(x) for x in changes]
    losses = []
    for step in range(steps):
        now = scale * (1 + changes[0])
        scaled = inputs * norm * (1 + changes[1])
        dense = now[:, group] * levels
        residual = scaled @ dense.T - target
        losses.append(float(residual.square().mean()))
        slope = 2 * residual / residual.numel()
        by_weight = slope.T @ scaled * levels
        by_scale = torch.stack([by_weight[:, group == g].sum(1) for g in range(len(scale[0]))], 1)
        gradients = [by_scale * scale, ((slope @ dense) * inputs).sum(0) * norm]
        schedule = min(1.0, (step + 1) / max(1, round(0.1 * steps))) * (1 - step / steps)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient**2
            mean = first[i] / (1 - 0.9 ** (step + 1))
            variance = second[i] / (1 - 0.99 ** (step + 1))
            changes[i] = changes[i] - rates[i] * schedule * mean / (variance.sqrt() + 1e-8)
    return scale * (1 + changes[0]), norm * (1 + changes[1]), losses
