"""The backprop scheduler: plans buffers once, then runs the kernels of the layers in order and back again.

It knows no layer type. A layer says what shape it makes and which operation of the backend computes it. An operation reads values
and writes one: the images are the first value. From that follow the buffers, and a training step is two loops:

    for step in steps:            run(step.operation.forward(n, y, x, ...))
    for step in reversed(steps):  run(step.operation.backward(n, dx, ..., dy, x, y, ...))

A value has as many readers as layers name it. The first of them to come by in backward writes its gradient, the others add to it.

What an operation returns is a list of calls, kernels with their arguments. It depends on n and on whether the network is trained,
so the lists are kept.

It knows no device either. A backend is a namespace: operations, `Buffer` and `Partials` for memory, functions that copy and run.
"""
import contextlib
import functools
import math
import threading
from dataclasses import dataclass, field

import numpy as np

from nbcnn.kernels import turns
from nbcnn.kernels.arguments import flag, integer, ints
from nbcnn.kernels.backend import as_array, on_device
from nbcnn.kernels.bfloat16 import BFLOAT16, numbers
from nbcnn.kernels.images import normalize_images
from nbcnn.kernels.number import loss_number
from nbcnn.kernels.operation import Place
from nbcnn.kernels.shown import one_line, shown
from nbcnn.layers import MOST_FUSED, require_network
from nbcnn.losses import require_loss
from nbcnn.memory import max_memory
from nbcnn.optim import clip_grad_norm_
from nbcnn.precision import require_precision
from nbcnn.profile import Profile
from nbcnn.table import format_table


@dataclass(eq=False)
class Value:
    """What one step writes and others read: the images, or what a layer gives.

    `array` and `grad` are its Buffers: the values, and dLoss/d(values) where somebody needs it. Both have the same dtype.
    """
    name: str
    shape: tuple
    readers: list = field(default_factory=list)     # names of layers, twice for one that reads it twice
    needs_grad: bool = False
    dtype: object = None
    array: object = None
    grad: object = None


@dataclass(eq=False)
class Step:
    """One operation and the values that it reads and writes.

    `names` are those of the layers it computes, `reason` says why it computes several, or why not. `dxs` are where its backward
    writes the gradients of the inputs: a value's own `grad`, or memory from where they are added or copied to that; None for one
    that nobody needs.
    """
    names: tuple
    reason: str
    layer: object
    operation: object
    inputs: tuple
    output: Value
    learns: bool        # whether it has a backward pass: something before it, or itself, is learned
    dxs: tuple = ()
    partials: object = None

    @property
    def name(self):
        return "+".join(self.names)

    def hands_on(self, value):
        """Whether the gradient of its output is that of an input, and may lie in the same memory."""
        return (self.operation.shares or self.operation.hands_on) and value.dtype == self.output.dtype

    @property
    def x_shape(self):
        """The shape of a sample of the input, a tuple of shapes for a layer of several."""
        return self._of_inputs(value.shape for value in self.inputs)

    @property
    def y_shape(self):
        return self.output.shape

    @property
    def x(self):
        return self._of_inputs(value.array for value in self.inputs)

    @property
    def y(self):
        return self.output.array

    @property
    def dx(self):
        return self._of_inputs(self.dxs or (None,) * len(self.inputs))

    @property
    def dy(self):
        return self.output.grad

    def _of_inputs(self, values):
        values = tuple(values)
        return values[0] if self.layer.inputs == 1 else values

    @property
    def params(self):
        """The values of the parameters as the operation takes them, flat."""
        return tuple(p and p.flat for p in self.layer.params)

    def forward(self, n, loss=None, training=True):
        """The calls of the forward pass of n samples, and of a loss of what it gives."""
        arguments = n, self.y, self.x, self.params
        if not training:
            return self.operation.evaluate(*arguments)
        return self.operation.forward(*arguments) if loss is None else self.operation.forward_with_loss(*arguments, loss)

    def backward(self, n, backend, written):
        """The calls of the backward pass, which adds to the gradients that there are. `written` are the values that have one."""
        dparams = tuple(self.partials.target(p) if p is not None and p.trainable else None for p in self.layer.params)
        add = tuple(p is not None and p.has_grad for p in self.layer.params)
        calls = list(self.operation.backward(n, self.dx, dparams, self.dy, self.x, self.y, self.params, add))
        for value, dx in zip(self.inputs, self.dxs, strict=True):
            if dx is not None and dx is not value.grad:
                calls.append(backend.add_call(value.grad, value.grad, dx, n) if value in written else
                             backend.copy_call(value.grad, dx, n))
            if dx is not None:
                written.add(value)
        return calls


def _alone(method):
    """A method that refuses to begin while one of the same scheduler is running, whose buffers they would share."""
    @functools.wraps(method)
    def alone(self, *arguments, **options):
        user = object()
        try:        # whatever interrupts it, a scheduler that nobody uses is free
            self._users.append(user)
            if self._users[0] is not user:
                self.model.vector.backend.require()     # who has it may have stayed behind in another process
                raise RuntimeError(f"{method.__name__.strip('_')}: another thread is using this scheduler, or this one further up; "
                                   "give each one of its own")
            return method(self, *arguments, **options)
        finally:
            if user in self._users:
                self._users.remove(user)
    return alone


class BackpropScheduler:
    """Runs forward and backward of a model, and of a loss on its output.

    Parameters
    ----------
    model : Network or Sequential
    loss : a loss of `nbcnn.losses`, or None for a model that is only to predict
    fuse : bool
        Whether layers that follow one another may be computed in one go. False keeps what each layer gives in `outputs`.
    need_dx : bool
        Whether backward computes the gradient of the images too, `dx`.
    precision : {"f32", "bf16"}
        "bf16": activations and their gradients are stored in bfloat16, whose products the processor's unit for them sums up in
        float32; see `nbcnn.precision`. Parameters, their gradients, images, outputs and the loss stay float32. A model in float64
        stays in float64.

    Notes
    -----
    The steps of a scheduler are one thread's: two at once, or a backward after another thread's forward, are a RuntimeError.
    `predict` may be called by any number of threads, which take turns; it never sees a parameter in the middle of an update.

    Examples
    --------
    >>> import nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, 3)])
    >>> step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    >>> optimizer = nbcnn.SGD(model.parameters(), lr=0.01)
    >>> images, labels = np.ones((4, 3, 2, 2), np.float32), np.array([0, 2, 1, 2])
    >>> before = step.forward(images, labels)
    >>> optimizer.zero_grad(); step.backward(); optimizer.step()
    >>> step.forward(images, labels) < before
    True
    """

    def __init__(self, model, loss, *, fuse=True, need_dx=False, precision="f32"):
        require_network(model)
        if loss is not None and require_loss(loss).reduction == "none":
            raise ValueError("loss: expected reduction 'mean' or 'sum', a single number to differentiate, got 'none'")
        self.model, self.loss, self.fuse, self.need_dx = model, loss, flag(fuse, "fuse"), flag(need_dx, "need_dx")
        self.precision = require_precision(precision, model)
        # Of a sample and of the parameters, and what of these is trainable: what the plan is made for.
        self.shape = self.backend = self._planned = None
        self.steps, self._input = [], None      # and the value of the images
        self.stateful = False                   # whether a training step changes more than parameters, or draws random numbers
        self._users = []            # calls of methods that are `_alone`: the first one runs, the others are refused
        self._thread = None         # which called forward
        self._profile = None        # inside a block that records
        self._partials = None
        self._parameters = []
        self._n = 0
        self._forget_buffers()

    @_alone
    def forward(self, images, targets, *, training=True):
        """The loss of a batch.

        Parameters
        ----------
        images : uint8 or float array (N, C, H, W)
            uint8 images are normalised with the model's mean and std; floats are taken as they are. The view that
            `images(n)` gave is not copied. For a model on a GPU: of NumPy, which is copied there, or device arrays.
        targets : array
            What the loss takes. Those of a device array are not looked at beforehand: the loss is NaN where one is not allowed.
        training : bool
            False: no backward pass follows.

        Returns
        -------
        loss : float
            On a GPU a number that is fetched when it is asked for, `float(loss)`, which waits until it is known.

        Raises
        ------
        TypeError, ValueError, IndexError
            When a shape does not fit (the message names the layer), or the loss refuses the targets.
        RuntimeError
            While another thread is using this scheduler; so do all methods of a step.
        """
        return self._forward(images, targets, flag(training, "training"))

    def _forward(self, images, targets, training):
        self._dlogits, self._thread = None, threading.get_ident()
        profile = self._profile if training else None
        logits = self._run(images, profile, training)
        if training and self.model.input_shape is None:
            self.model.input_shape = self.shape
        key = "loss", "both", type(self.loss).__name__
        if self.loss is None:
            raise RuntimeError("forward: expected a scheduler with a loss; predict(images) needs none")
        loss, self._dlogits = _call(profile, key, self.backend.run_loss, self.loss, logits, targets, training)
        if profile:
            profile.steps += 1
        if training and self.stateful and math.isfinite(float(loss)):
            n, vector = self._n, self.model.vector
            self._launch(profile, "forward", ("commit", n), lambda: self.commit_calls(n))
            self.backend.write(vector.steps, self.backend.to_host(vector.steps) + 1)
        return loss_number(loss)

    def predict(self, images, *, training=False):
        """The model's output for a batch, as a copy: a device array for a device array, else one of NumPy.

        With `training` it is what a training step's forward pass gives; what layers keep stays as it is.
        """
        with turns.lock:
            return self._predict(images, flag(training, "training"))

    @_alone
    def _predict(self, images, training):
        self._dlogits = None
        logits = self._run(images, training=training)
        return self.backend.copy_of(logits) if on_device(images) else self.backend.to_host(logits)

    @_alone
    def backward(self):
        """Gradients of the last forward pass's loss: into each parameter's `grad`, added where one is there already.

        Raises
        ------
        RuntimeError
            When no forward pass with training=True came directly before, or it was another thread's.
        """
        self._backward()

    def _backward(self):
        if self._dlogits is None:
            raise RuntimeError("backward: expected a forward pass of its own before it; call forward(images, targets) first")
        if self._thread != threading.get_ident():
            raise RuntimeError("backward: expected a forward pass by the same thread before it, got another thread's; give each "
                               "thread a scheduler of its own")
        n, dlogits, self._dlogits = self._n, self._dlogits, None
        parameters = self._parameters
        if not parameters and not self.need_dx:
            return
        self.reserve(n, backward=True)
        self.steps[-1].dy.set(dlogits)
        self._launch(self._profile, "backward", ("backward", n, *(p.has_grad for p in parameters)), lambda: self.backward_calls(n))
        for parameter in parameters:
            parameter.has_grad = True

    def forward_calls(self, n, loss=None, training=True):
        """(step's name, call) for all calls of a forward pass of n samples, and of a loss."""
        return [(step.name, call) for step in self.steps
                for call in step.forward(n, loss if step is self.steps[-1] else None, training)]

    def commit_calls(self, n):
        """(step's name, call) for all calls that change what layers keep, after a forward pass of n samples."""
        return [(step.name, call) for step in self.steps for call in step.operation.commit(n)]

    def backward_calls(self, n, update=None):
        """(step's name, call) for all calls of a backward pass; the last ones add up partial sums, unless `update` gives others."""
        written = set()
        calls = [(step.name, call) for step in reversed(self.steps) if step.learns
                 for call in step.backward(n, self.backend, written)]
        add = [p for p in self._parameters if p.has_grad]
        return calls + [("gradients", call) for call in (self._partials.sum(n, add) if update is None else update(self._partials))]

    @_alone
    def train_step(self, images, targets, optimizer, *, clip_norm=None):
        """zero_grad, forward, backward and the optimizer's step; the update is left out where the loss is not finite.

        With `clip_norm` the gradients are clipped before the update, to this norm of all that the optimizer updates.

        Returns
        -------
        loss : float
        """
        optimizer.zero_grad()
        loss = self._forward(images, targets, True)
        if math.isfinite(float(loss)):
            self._backward()
            if clip_norm is not None:
                _call(self._profile, ("optimizer", "update", "clip_grad_norm_"), clip_grad_norm_, optimizer.params, clip_norm)
            _call(self._profile, ("optimizer", "update", type(optimizer).__name__), optimizer.step)
        return loss

    @contextlib.contextmanager
    def profile(self, into=None):
        """While a block runs, measure what each kernel of a training step takes.

        Recorded are forward passes with training=True and backward passes, kernel by kernel, the loss, and the update in
        `train_step`. All else in the block counts as "everything else": the loop's Python, the images, passes without training,
        and an update that the caller makes. The results are the same bits. A step of the same batch size before the block keeps
        the compiler's time out.

        Parameters
        ----------
        into : Profile, optional
            That of an earlier block, to be gone on with.

        Yields
        ------
        profile : Profile
            `print(profile)` shows a table, `profile.rows` has the same as data.

        Raises
        ------
        TypeError
            When `into` is something else.
        RuntimeError
            Inside another such block of the same scheduler, or for a model on a GPU.

        Examples
        --------
        >>> import nbcnn
        >>> model = nbcnn.Sequential([("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(12, 3))])
        >>> step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.01)
        >>> images, labels = np.ones((4, 3, 2, 2), np.float32), np.array([0, 2, 1, 2])
        >>> with step.profile() as profile:
        ...     for _ in range(5):
        ...         loss = step.train_step(images, labels, optimizer)
        >>> profile.steps, profile.rows[0]["step"], profile.rows[0]["pass"], profile.rows[0]["calls"]
        (5, 'flatten', 'forward', 5)
        """
        if into is not None and not isinstance(into, Profile):
            raise TypeError(f"into: expected a Profile, got {into!r}")
        if self._profile is not None:
            raise RuntimeError("profile: expected no such block around this one")
        if self.model.device != "cpu":
            raise RuntimeError(f"profile: expected a model on the CPU, got one on {self.model.device}; see bench/gpu.py")
        profile = Profile(self.model.dtype, self.precision) if into is None else into
        profile.start()
        self._profile = profile
        try:
            yield profile
        finally:
            profile.stop()
            self._profile = None

    @_alone
    def images(self, n):
        """A writable (n, C, H, W) view of the first buffer; `forward` takes it without a copy.

        What a forward pass has left there is given up: a backward pass needs a new one.

        Raises
        ------
        RuntimeError
            When neither the model's input_shape nor a first batch tells the images' shape.
        """
        if self.shape is None and self.model.input_shape is None:
            raise RuntimeError("images: expected a model with input_shape, or a batch before")
        self._dlogits = None
        self.plan(self.shape or self.model.input_shape)
        self.reserve(integer(n, "n", 0))
        self._images = self._input.array.view(n)
        return self._images

    @property
    def outputs(self):
        """What each layer gave in the last forward pass, by name: views that the next pass overwrites.

        Of layers computed in one go there is what the last of them gave. What is stored in bfloat16 is copied, as float32.
        """
        return {step.output.name: numbers(step.y.view(self._n)) for step in self.steps if step.y is not None}

    @property
    def dx(self):
        """The gradient of the images with `need_dx`, None before the first backward: a view that the next one overwrites."""
        return self._input.grad.view(self._n) if self._input is not None and self._input.grad is not None else None

    def first_nonfinite(self, n=None):
        """The name of the first layer whose output holds a NaN or an infinity, "input", or None: of the last batch, or n of it."""
        def finite(buffer):
            return np.isfinite(self.backend.to_host(numbers(buffer.view(self._n if n is None else n)))).all()
        if self._input is None or self._input.array is None or not finite(self._input.array):
            return "input"
        return next((step.name for step in self.steps if not finite(step.y)), None)

    def _run(self, images, profile=None, training=False):
        """Forward through all layers; the last one's output, a view."""
        images = as_array(images, "images")
        self._plan_for(images)
        self._n = n = len(images)
        self.reserve(n)
        if images is not self._images:
            if images.dtype == np.uint8:
                # What has no axis of channels counts as one channel.
                shape = images.shape if images.ndim == 4 else (n, 1, math.prod(images.shape[1:]), 1)
                placed, table = self.backend.place(images).reshape(shape), self.backend.place(self.model.table(shape[1]))
                normalize_images(self._input.array.view(n).reshape(shape), placed, table)
            else:
                self._input.array.set(images)
        self._launch(profile, "forward", ("forward", n, training), lambda: self.forward_calls(n, training=training))
        return self.steps[-1].y.view(n)

    def _plan_for(self, images):
        """Plan for a batch of images; TypeError or ValueError where the model cannot take it."""
        if images.dtype not in (np.uint8, np.float32, np.float64):
            raise TypeError(f"images: expected a uint8, float32 or float64 array, got {one_line(str(images.dtype))}")
        if images.ndim < 2:
            raise ValueError(f"images: expected shape (N, C, H, W), got shape {shown(images.shape)}")
        try:
            self.plan(images.shape[1:])
        except ValueError as error:
            hint = "; a single image is a batch as images[None]" if images.ndim == 3 else ""
            if images.ndim in (3, 4) and images.shape[-1] in (1, 3):
                hint = f"; axes are C, H, W: images.transpose{'(2, 0, 1)[None]' if images.ndim == 3 else '(0, 3, 1, 2)'}"
            said, *more = str(error).split("; ", 1)
            raise ValueError(f"{said} from images of shape {images.shape}{hint}{''.join(f'; {text}' for text in more)}") from None

    def at_once(self, images, n):
        """How many of these images are to be predicted at a time, n or fewer, and the output's shape; raises as `predict`."""
        with turns.lock:        # other threads may predict images of another shape
            self._plan_for(images)
            return self.fitting(images.shape[1:], min(n, len(images)) or 1), self.steps[-1].y_shape

    def _launch(self, profile, direction, key, make):
        """Run the calls kept under a key; where there are none, `make` gives them, each with its step's name."""
        if key not in self._calls:
            if len(self._calls) >= 32:      # batches of ever other sizes
                self._calls.clear()
            labelled = make()
            self._calls[key] = [name for name, _ in labelled], [call for _, call in labelled]
            self.backend.compile_calls(self._calls[key][1])
        names, calls = self._calls[key]
        if profile is None:
            self.backend.run(calls)
        else:
            profile.run(names, direction, calls)

    def plan(self, shape):
        """Infer the shapes and choose the operations for samples of a shape; the first batch does it by itself.

        Raises
        ------
        ValueError
            When a layer cannot take what the one before gives: names the layer and both shapes.
        """
        backend, planned = self.model.vector.backend, self.model.vector.planned
        if self.precision == "bf16":
            require_precision("bf16", self.model)       # which may lie elsewhere by now
        if isinstance(shape, tuple) and shape == self.shape and backend is self.backend and planned == self._planned:
            return
        shape = ints(shape, "shape", "a tuple of ints", 0)
        images, inputs, outputs = self._values(shape)
        layers, steps, k = list(self.model.layers.items()), [], 0
        operations = backend.bfloat16() if self.precision == "bf16" else backend
        while k < len(layers):
            name, layer = layers[k]
            reads, fused, count, reason = inputs[name], None, 0, ""
            x_shape = reads[0].shape if layer.inputs == 1 else tuple(value.shape for value in reads)
            if self.fuse:
                fused, count, reason = layer.fuse(_chain(layers[k:k + 1 + MOST_FUSED], inputs, outputs), x_shape)
            names, layer = tuple(name for name, _ in layers[k:k + 1 + count]), fused or layer
            operation, output = layer.operation(operations, x_shape, self.model.dtype), outputs[names[-1]]
            operation.place = Place(self.model.seed, k, self.model.vector.steps)
            output.needs_grad = (any(p.trainable for p in layer.parameters.values())
                                 or any(value.needs_grad for value in reads))
            steps.append(Step(names, reason, layer, operation, reads, output, output.needs_grad))
            k += len(names)
        self._choose_dtypes(images, steps)
        self.shape = None       # what follows may be interrupted
        self._forget_buffers()
        self._Buffer = backend.BFloat16Buffer if self.precision == "bf16" else backend.Buffer
        self.backend, self.steps, self._input, self._planned = backend, steps, images, planned
        self._parameters = [p for p in self.model.parameters() if p.trainable]
        self.stateful = any(step.operation.stateful for step in steps)
        self.shape = shape

    def _choose_dtypes(self, images, steps):
        """Say of each value what it is stored in: the model's dtype or, with precision bf16, bfloat16 wherever that is possible.

        Images stay in float32, and so does the network's output, back to where products were last summed up in it; and what
        operations read and write that know nothing else, as those of one's own.
        """
        own = self.model.dtype
        stored = BFLOAT16 if self.precision == "bf16" else own
        images.dtype, ends = own, True
        for step in steps:
            step.output.dtype = stored
        for step in reversed(steps):
            floats = not step.operation.bfloat16
            if ends or floats:
                step.output.dtype = own
            ends = ends and len(step.inputs) == 1 and len(step.output.readers) < 2 and not step.operation.sums_float32
            if ends or floats or (step.operation.shares and step.output.dtype == own):
                for value in step.inputs:
                    value.dtype = own
        for step in steps:
            if step.operation.shares:       # the same memory
                step.output.dtype = step.inputs[0].dtype
            step.operation.stored(tuple(value.dtype for value in step.inputs), step.output.dtype)

    def _values(self, shape):
        """The value of the images; by the layers' names, the values that each reads, and the one that it gives."""
        shapes, images = self.model.shapes(shape), Value("input", shape, needs_grad=self.need_dx)
        inputs, outputs = {}, {}
        for name, reads in self.model.inputs.items():
            inputs[name] = tuple(outputs.get(read, images) for read in reads)
            outputs[name] = Value(name, shapes[name])
            for value in inputs[name]:
                value.readers.append(name)
        return images, inputs, outputs

    def reserve(self, n, *, backward=False):
        """Make the buffers for n samples, unless there are large enough ones: those of a forward pass, and of a backward pass.

        Raises
        ------
        MemoryError
            On the CPU, before anything is allocated: when they would take more than `nbcnn.set_max_memory` says.
        """
        more = n > self.capacity
        if not more and (self._has_backward or not backward):
            return
        n = max(n, self.capacity)
        if self.backend.device == "cpu":        # a GPU has nothing but its own memory, and says so
            self._require_memory(n, backward)
        if more:
            self._reserve_forward(n)
        if backward:
            self._reserve_backward(n)

    def fitting(self, shape, n):
        """How many samples of a shape at a time fit into memory, for a forward pass: n, or fewer.

        Raises
        ------
        MemoryError
            When not even one does.
        ValueError
            As `plan`.
        """
        self.plan(shape)
        if n > self.capacity and self.backend.device == "cpu":
            while n > 1 and sum(self._bytes(n)) > max_memory():
                n = -(-n // 2)
            self._require_memory(n)
        return n

    def _bytes(self, n, backward=False):
        """How many bytes each step takes for n samples, with its output and that output's gradient; the first with its input too.

        From the shapes alone, as nothing is allocated yet. What several steps use counts for the first of them.
        """
        elements = self._Buffer.elements
        taken, (rooms, sizes) = [step.operation.bytes(n) for step in self.steps], self._rooms(n)
        taken[0] += self._input.dtype.itemsize * elements(n, self.shape) * (2 if backward and self.need_dx else 1)
        for room, (size, dtype) in enumerate(sizes):
            taken[rooms.index(room)] += dtype.itemsize * size
        if backward:
            shared = {value for step in self.steps for value in step.inputs if step.hands_on(value) and len(value.readers) == 1}
            for k, step in enumerate(self.steps):
                if step.learns:
                    taken[k] += step.operation.backward_bytes(n, any(value.needs_grad for value in step.inputs))
                    taken[k] += step.output.dtype.itemsize * elements(n, step.y_shape) * (step.output not in shared)
            for shape, dtype, _ in set(self._scratch().values()):
                taken[0] += dtype.itemsize * elements(n, shape)
        return taken

    def _rooms(self, n):
        """In which memory each step's output lies for n samples, None for that of the images; each one's elements and dtype.

        Where predictions are all that is wanted, memory is used again as soon as the last reader of what lies there is done.
        """
        elements, again = self._Buffer.elements, self.loss is None and self.fuse and not self.need_dx
        last = {value: k for k, step in enumerate(self.steps) for value in step.inputs}
        room_of, sizes, waiting, free = {self._input: None}, [], {}, []
        widest = max(step.y_shape[0] for step in self.steps) if again else 0     # the pixel of zeros lies behind all values
        for k, step in enumerate(self.steps):
            if step.operation.shares:
                room = room_of[step.inputs[0]]
            else:
                size, dtype = elements(n, step.y_shape) + widest, step.output.dtype
                room = min((room for room in free if sizes[room][1] == dtype),
                           key=lambda room: (sizes[room][0] < size, abs(sizes[room][0] - size)), default=len(sizes))
                if room in free:
                    free.remove(room)
                    sizes[room] = max(sizes[room][0], size), dtype
                else:
                    sizes.append((size, dtype))
            room_of[step.output] = room
            waiting.setdefault(room, set()).add(step.output)
            for value in step.inputs:
                if again and last[value] == k and room_of[value] is not None:
                    waiting[room_of[value]].discard(value)
                    if not waiting[room_of[value]] and room_of[value] not in free:
                        free.append(room_of[value])
        return [room_of[step.output] for step in self.steps], sizes

    def _scratch(self):
        """By step and number of an input, where its gradient is computed that is then added to what other readers have written.

        That is (shape, dtype, k): the k-th memory of that kind, as a step may need several.
        """
        written, found = set(), {}
        for step in reversed(self.steps):
            own = []
            for k, value in enumerate(step.inputs if step.learns else ()):
                if value in written and not step.hands_on(value):
                    kind = value.shape, value.dtype
                    found[step, k] = *kind, own.count(kind)
                    own.append(kind)
                if value.needs_grad:
                    written.add(value)
        return found

    def _require_memory(self, n, backward=False):
        """Raise MemoryError unless the buffers for n samples may be allocated."""
        taken, most = self._bytes(n, backward), max_memory()
        if sum(taken) > most:
            largest = taken.index(max(taken))
            smaller = "smaller batches need less, and " if n > 1 else ""
            raise MemoryError(
                f"{self.steps[largest].name}: expected buffers of at most {most:,} bytes for all layers and a batch of {n}, got "
                f"{sum(taken):,}, {taken[largest]:,} of them for this layer; {smaller}--max-memory or nbcnn.set_max_memory "
                "allows more")

    def _forget_buffers(self):
        """Nothing that was reserved, or bound to it, is good any more: the first thing to do before any of it is replaced."""
        self.capacity = -1          # samples that the buffers hold
        self._has_backward = False  # whether there are those of a backward pass, too
        self._calls = {}            # what to run, by number of samples and, for backward, which gradients are added to
        self._images = None         # the view that `images` gave last
        self._dlogits = None        # the loss's gradient, after a forward pass that backward may follow

    def _reserve_forward(self, n):
        """Forward buffers for n samples."""
        self._forget_buffers()
        Buffer = self._Buffer
        images = self._input.array = Buffer(n, self.shape, self._input.dtype)
        rooms, sizes = self._rooms(n)
        memory = [self.backend.allocate((size,), dtype) for size, dtype in sizes]
        for step, room in zip(self.steps, rooms, strict=True):
            step.output.array = Buffer(n, step.y_shape, step.output.dtype, images.array if room is None else memory[room])
            step.operation.reserve(n)
        self.capacity = n

    def _reserve_backward(self, n):
        """Gradient buffers, of all values whose gradient somebody needs."""
        Buffer, learning = self._Buffer, [step for step in self.steps if step.learns]
        parts = {p: step.operation.parts for step in learning for p in step.layer.parameters.values() if p.trainable}
        self._partials = self.backend.Partials(self.model.vector, parts, n)
        places = self._scratch()
        scratch = {place: Buffer(n, *place[:2]) for place in set(places.values())}
        for value in [self._input, *(step.output for step in learning)]:
            value.grad = None
        learning[-1].output.grad = Buffer(n, learning[-1].y_shape, learning[-1].output.dtype)
        for step in reversed(learning):
            step.partials, dxs = self._partials, []
            for k, value in enumerate(step.inputs):
                shared = step.output.grad.array if step.hands_on(value) else None
                if not value.needs_grad:
                    dx = None
                elif value.grad is None and (shared is None or len(value.readers) == 1):
                    dx = value.grad = Buffer(n, value.shape, value.dtype, shared)
                elif shared is None:
                    dx = scratch[places[step, k]]
                else:
                    dx = Buffer(n, value.shape, value.dtype, shared)
                    value.grad = value.grad or Buffer(n, value.shape, value.dtype)
                dxs.append(dx)
            step.dxs = tuple(dxs)
        self._has_backward = True

    def __str__(self):
        shape = self.shape or self.model.input_shape
        if shape is None:
            return "no plan yet: it is made at the first batch, or from the model's input_shape"
        self.plan(shape)
        rows = []
        values = [self._input, *(step.output for step in self.steps)]
        chain = all(step.inputs == (value,) for step, value in zip(self.steps, values, strict=False))
        for step in self.steps:
            flop, how = step.layer.flop(step.x_shape), "fused" if len(step.names) > 1 else "plain"
            notes = [f"{how}: {step.reason}"] if step.reason else []
            notes += ["in float32"] * (self.precision == "bf16" and not step.operation.bfloat16)
            inputs = dict.fromkeys(_shape(value.shape) for value in step.inputs)
            rows.append([step.name, type(step.operation).__name__, ", ".join(inputs), _shape(step.y_shape),
                         *[", ".join(dict.fromkeys(step.output.readers))] * (not chain),
                         f"{math.prod(step.y_shape) * step.output.dtype.itemsize:,}",
                         f"{flop / 1e6:.2f}", "; ".join(notes)])
        table = format_table(["step", "kernel", "input", "output", *["read by"] * (not chain), "bytes", "MFLOP", ""], rows)
        return f"{table}\n\n{self.backend.describe_bfloat16()}" if self.precision == "bf16" else table


def _chain(layers, inputs, outputs):
    """The layers that follow the first, as long as each is the only reader of the one before and reads nothing else."""
    found, (before, _), *following = [], *layers
    for name, layer in following:
        if inputs[name] != (outputs[before],) or outputs[before].readers != [name]:
            break
        found.append((name, layer))
        before = name
    return found


def _call(profile, key, function, *arguments):
    """function(*arguments), its time recorded under (step, pass, kernel) where there is a profile."""
    return function(*arguments) if profile is None else profile.call(key, function, *arguments)


def _shape(shape):
    return " x ".join(map(str, shape))
