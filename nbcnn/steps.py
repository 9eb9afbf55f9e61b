"""The steps of a training: the host feeds one batch at a time, or all images lie on the device, which needs no more.

A step is zero_grad, forward, loss, backward and update: `BackpropScheduler.train_step` or, on the device, `DeviceSteps.calls`.
"""
import math

import numpy as np

GRAPH_STEPS = 8     # in one graph, where so many are to be done
AT_ONCE = 64        # steps started before their losses are looked at, which waits for them


class HostSteps:
    """Training steps whose batches the loader makes, one at a time.

    The scheduler has a plan for the images. The optimizer is None for what only computes outputs. `targets` makes the loss's
    targets of labels; `schedule`, or None, the learning rate of a step from its number, over all epochs. `clip_norm` and `ema`, or
    None, are as of `fit`.
    """

    def __init__(self, scheduler, optimizer, loader, targets, schedule, clip_norm=None, ema=None):
        self.scheduler, self.optimizer, self.loader, self.targets, self.schedule = scheduler, optimizer, loader, targets, schedule
        self.clip_norm, self.ema = clip_norm, ema
        self.epoch = self.step = 0

    def begin(self, epoch, start=0):
        """Go to a step of an epoch."""
        into = self.scheduler.images if self.scheduler.backend.device == "cpu" else None
        self.epoch, self.step, self.batches = epoch, start, self.loader.epoch(epoch, into, start)

    def run(self):
        """Do the next step, or the next few; the (loss, number of samples) of each."""
        images, labels = next(self.batches)
        if self.schedule:
            self.optimizer.lr = self.rate(self.step)
        self.step += 1
        loss = self.scheduler.train_step(images, self.targets(labels), self.optimizer, clip_norm=self.clip_norm)
        if self.ema is not None and math.isfinite(float(loss)):
            self.ema.update()
        return [(loss, len(labels))]

    def rate(self, step):
        """The learning rate of a step of this epoch."""
        if self.schedule:
            return self.schedule(self.epoch * len(self.loader) + step)
        return self.optimizer.lr if self.optimizer else 0.0

    def first_nonfinite(self, step):
        """The first layer whose output was not finite in that step, which updated nothing; None where all are."""
        return self.scheduler.first_nonfinite()


class DeviceSteps(HostSteps):
    """The same steps with images, order, learning rates and losses on the device.

    The calls of a step end with those that fetch the images of the next one. Which step it is the kernels read from the device's
    `state`: the list is the same for every step of one batch size, and so is a graph of it. With `graph`, steps are recorded once
    and started as graphs; the results are the same bits.
    """

    def __init__(self, scheduler, optimizer, loader, schedule=None, *, graph=True):
        super().__init__(scheduler, optimizer, loader, None, schedule)      # labels are targets enough
        self.graph, self.backend = graph, (backend := scheduler.backend)
        count, steps, dtype = len(loader.dataset), len(loader), scheduler.model.dtype
        self.images, own = backend.to_device(loader.dataset.images.reshape(-1)), loader.shift_per == "image"
        self.kind = *loader.dataset.images.shape[1:], own, loader.border == "reflect", loader.cutout
        self.table = backend.to_device(loader.table.reshape(-1))
        self.index, self.labels, self.flips = (backend.empty((count,), kind) for kind in (np.int64, np.int64, np.uint8))
        self.shifts, self.corners = (backend.empty((2 * n,), np.int64) for n in (count if own else steps, count))
        self.rates = backend.empty((steps,), dtype)
        self.losses, self.state = backend.empty((steps,), dtype), backend.state.make_state()
        self._memory, self._calls, self._graphs = (), {}, {}    # what has run with some memory, by batch size, and graphs of it

    def begin(self, epoch, start=0):
        self.epoch, self.step = epoch, start
        order, shifts = self.loader.order(epoch), self.loader.shifts(epoch)
        if self.loader.shift_per == "image":
            shifts = shifts[order]
        for array, values in (
                (self.index, order), (self.labels, self.loader.dataset.labels[order]),
                (self.flips, self.loader.flips(epoch)[order]), (self.shifts, shifts.reshape(-1)),
                (self.corners, self.loader.corners(epoch)[order].reshape(-1)),
                (self.state, [start, start, 0]), (self.rates, [self.rate(step) for step in range(len(self.loader))])):
            self.backend.write(array, np.asarray(values, array.dtype))

    def run(self):
        first = self.step
        self.start(min(AT_ONCE, len(self.loader) - first))
        losses = self.backend.to_host(self.losses)[first:self.step].tolist()
        if self.schedule:
            self.optimizer.lr = self.rate(self.step - 1)
        return [(loss, self.size(step)) for step, loss in enumerate(losses, first)]

    def size(self, step):
        """How many samples a step has: the last of an epoch may have fewer."""
        return min(self.loader.batch_size, len(self.loader.dataset) - step * self.loader.batch_size)

    def start(self, count):
        """Start so many steps, without waiting for them."""
        stop = self.step + count
        self.scheduler.reserve(self.loader.batch_size, backward=True)
        if count:
            self.backend.run([self._gather(self.size(self.step))])
        while self.step < stop:
            n, steps, update = self.size(self.step), 1, self.optimizer.update_of_all()
            # Calls and graphs are good for the memory that they were made with.
            memory = self.scheduler.steps[0].x, *(update or ())
            if [*map(id, memory)] != [*map(id, self._memory)]:
                self._memory, self._calls, self._graphs = memory, {}, {}
            calls = self._calls.get(n)
            if calls is None or not self.graph or n < self.loader.batch_size:
                calls = calls or [call for _, call in self.calls(n)]
                self.backend.run(calls)
                if update:
                    self._calls[n] = calls
            else:       # a graph needs kernels that have run, as these have
                if self.step + GRAPH_STEPS <= stop and self.size(self.step + GRAPH_STEPS - 1) == n:
                    steps = GRAPH_STEPS
                if steps not in self._graphs:
                    self._graphs[steps] = self.backend.Graph(calls * steps)
                self._graphs[steps].launch()
            for parameter in self.scheduler.model.parameters():
                parameter.has_grad = parameter.trainable
            self.optimizer.updated()
            self.step += steps

    def calls(self, n):
        """(step's name, call) for all calls of a training step of n samples."""
        scheduler, optimizer = self.scheduler, self.optimizer
        optimizer.zero_grad()
        last, update = scheduler.steps[-1], optimizer.update_of_all()
        loss = self.backend.loss_call(scheduler.loss, self.losses, last.dy.array, last.y.array, self.labels, (n, *last.y_shape),
                                      self.state, self.loader.batch_size, True)
        calls = scheduler.forward_calls(n, loss)
        gather = self._gather(self.loader.batch_size)       # of the next step, for which the loss has set the state
        if update:      # one launch with the sums of the gradients
            buffer, options = update
            return calls + scheduler.backward_calls(n, lambda partials: partials.update_and_gather(
                n, buffer, self.rates, options, self.kind, gather))
        return calls + scheduler.backward_calls(n) + [
            ("update", self.backend.update_call(data, buffer, grad, self.rates, options, first, self.state))
            for data, buffer, grad, first, options in optimizer.updates()] + [("images", gather)]

    def _gather(self, n):
        return self.backend.images.gather_call(
            self.scheduler.steps[0].x.array, self.images, self.kind, self.index, self.flips, self.shifts, self.corners,
            self.table, self.state, self.loader.batch_size, n)

    def outputs(self):
        """The model's outputs for all images in the loader's order, a NumPy array (M, ...)."""
        self.begin(0)
        return np.concatenate([self._forward(step) for step in range(len(self.loader))])

    def _forward(self, step):
        """The outputs of one step's images."""
        n = self.size(step)
        self.backend.write(self.state, np.array([step, step, 0]))
        self.scheduler.reserve(self.loader.batch_size)
        self.backend.run([self._gather(n)] + [call for _, call in self.scheduler.forward_calls(n, training=False)])
        return self.backend.to_host(self.scheduler.steps[-1].y.view(n))

    def first_nonfinite(self, step):
        self._forward(step)     # again: later steps have used the buffers, but the parameters are the same
        return self.scheduler.first_nonfinite(self.size(step))
