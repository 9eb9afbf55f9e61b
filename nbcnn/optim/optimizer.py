"""What optimizers have in common: groups of parameters, and flat vectors beside theirs."""
import operator
from collections.abc import Mapping
from typing import NamedTuple

from nbcnn.instead import nearest
from nbcnn.kernels import turns
from nbcnn.kernels.arguments import INT64, instance, integer, numeric, rate, sequence
from nbcnn.kernels.shown import shown
from nbcnn.parameter import Parameter


class Beside:
    """Flat arrays, by name, that lie where a model's parameters do: `Sequential.to` moves only these."""

    def __init__(self, vector):
        self.vector, self.backend, self.arrays = vector, vector.backend, {}

    def follow(self):
        """Move the arrays to the device of the parameters; whether there was something to do."""
        if self.backend is self.vector.backend:
            return False
        self.arrays = {name: self.vector.backend.to_device(self.backend.to_host(array)) for name, array in self.arrays.items()}
        self.backend = self.vector.backend
        return True


class Run(NamedTuple):
    """Parameters side by side in memory, of one group and with one count, which one call of a kernel updates."""
    group: dict
    first: Parameter
    count: int          # of their updates when the run was made
    data: object
    grad: object
    slots: tuple
    options: tuple      # as the kernel takes them


class Optimizer:
    """The base of SGD, Adam, AdamW and Lookahead.

    A class derived from it says what the options of a group must be, `checked`, how its kernel takes them, `kernel_options`, how a
    run of parameters is updated, `update`, and what is to be remembered of that, `updated`.

    Parameters
    ----------
    params : list of Parameter, or list of dict
        All parameters of one model, or some of them; or groups of them, each with options of its own:
        [dict(params=weights, weight_decay=5e-4), dict(params=biases, lr=0.64)].
    options : dict
        What groups have that do not say otherwise.

    Attributes
    ----------
    params : list of Parameter
        Of all groups.
    param_groups : list of dict
        params, the options, and initial_lr, the rate that the group began with. An option that is set here, as in
        param_groups[0]["weight_decay"] = 0, counts from the next step on.
    slots : tuple of str
        What is kept for each parameter from step to step.
    """
    slots = ()
    counts_steps = False        # whether an update depends on how many there were

    def __init__(self, params, options):
        self.param_groups, self._group = [], {}
        for group in _groups(params):
            self._add({**options, **group}, options)
        self.params = list(self._group)
        if not self.params:
            raise ValueError("params: expected at least one Parameter, got none")
        self.vector = vector_of(self.params)
        for group in self.param_groups:
            group.update(self.checked(group))
            group["lr"] = rate(group["lr"], "lr")
            group["initial_lr"] = rate(group.get("initial_lr", group["lr"]), "initial_lr")
        self._options = list(options)
        self._values = operator.itemgetter(*(name for name in options if name != "lr"))  # its rate changes every step
        # What is kept lies on the device of the parameters, in the same order; it is empty until it is needed.
        self._beside, self._counts = Beside(self.vector), {}
        self._beside.arrays = {name: self.vector.backend.allocate((0,), self.vector.data.dtype) for name in self.slots}
        self._runs, self._runs_for, self._runs_of, self._kept = [], None, None, {}

    def _add(self, group, options):
        for name in group:
            if name not in (*options, "params", "initial_lr"):
                raise ValueError(f"params: expected groups with the options {', '.join(options)}, got {shown(name)}"
                                 f"{nearest(str(name), options)}")
        for parameter in group["params"]:
            if instance(parameter, "params", Parameter, "nbcnn Parameters") in self._group:
                raise ValueError("params: expected each Parameter once, got one twice")
            self._group[parameter] = len(self.param_groups)
        self.param_groups.append(group)

    def checked(self, group):
        """The options of a group, but for the rate, as plain numbers; raises where one is none."""
        raise TypeError(f"{type(self).__name__}: an optimizer defines checked")

    def kernel_options(self, group):
        """The options of a group as the kernel takes them."""
        raise TypeError(f"{type(self).__name__}: an optimizer defines kernel_options")

    def used_slots(self, group):
        """Those of `slots` that the updates of a group need."""
        return self.slots

    def update(self, run, lr):
        """Update the parameters of a run."""
        raise TypeError(f"{type(self).__name__}: an optimizer defines update")

    def updated(self, params):
        """Note that these parameters were updated."""
        raise TypeError(f"{type(self).__name__}: an optimizer defines updated")

    def update_of_all(self):
        """(slot, options) for an update of the whole vector in one launch with others; None where there can be none."""
        return None

    @property
    def lr(self):
        """The learning rate of the first group. Setting it sets the others' to initial_lr * lr / the first group's initial_lr."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value):
        value, first = rate(value, "lr"), self.param_groups[0]["initial_lr"]
        if first == 0 and any(group["initial_lr"] for group in self.param_groups):
            raise ValueError("lr: expected a first group with an initial_lr > 0, of which the others' are multiples, got 0")
        rates = [value if group["initial_lr"] == first else rate(group["initial_lr"] * value / first, "lr")
                 for group in self.param_groups]
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr

    def zero_grad(self):
        """Set every grad to None."""
        for parameter in self.params:
            parameter.has_grad = False

    def step(self):
        """Update the parameters that have a gradient. The others stay as they are, and so does what is kept for them."""
        self.follow()
        have_grad = [parameter for parameter in self.params if parameter.has_grad]
        wanted = have_grad, [*map(self._values, self.param_groups)]
        if self._runs_of is not self.vector.data or wanted != self._runs_for:       # it is new memory after a move and back
            self._runs, self._runs_for, self._runs_of = self.runs(have_grad), wanted, self.vector.data
        rates = [rate(run.group["lr"], "lr") for run in self._runs]
        with turns.lock:        # nobody sees some parameters updated and others not
            for run, lr in zip(self._runs, rates, strict=True):
                self.update(run, lr)
            self.updated(have_grad)

    def follow(self):
        """Move what is kept to the device of the parameters."""
        if self._beside.follow():
            self._runs_for = None

    def runs(self, params):
        """The fewest runs of these parameters."""
        options, used = [self.options_of(k) for k in range(len(self.param_groups))], [*map(self.used_slots, self.param_groups)]
        runs = []
        for (k, count), first, at in side_by_side(params, lambda p: (self._group[p], self._counts.get(p, 0))):
            slots = tuple(self._slot(name)[at] if name in used[k] else self._beside.arrays[name][:0] for name in self.slots)
            runs.append(Run(self.param_groups[k], first, count, self.vector.data[at], self.vector.grad[at], slots, options[k]))
        return runs

    def options_of(self, k):
        """The options of group k as the kernel takes them, the same object until one of them changes."""
        group = self.param_groups[k]
        if k not in self._kept or self._kept[k][0] != self._values(group):
            group.update(self.checked(group))
            self._kept[k] = self._values(group), self.kernel_options(group)
        return self._kept[k][1]

    def slot(self, name, parameter):
        """What one of `slots` holds for a parameter, a writable view in PyTorch's shape; None while there is nothing."""
        if not self._counts.get(parameter):
            return None
        self.follow()
        return parameter.shaped(self._slot(name)[parameter.start:parameter.stop])

    def _slot(self, name):
        """The vector of a slot, which begins with zeros."""
        arrays = self._beside.arrays
        if not arrays[name].size:
            arrays[name] = self.vector.backend.allocate(self.vector.grad.shape, self.vector.grad.dtype)
        return arrays[name]

    def state_dict(self):
        """The options, and for each slot a list with a copy of what each parameter has there, None where that is nothing.

        The options of one group stand by their names, those of several in `param_groups`, with the positions of their `params`.
        """
        state = self.full_state()
        if len(state["param_groups"]) == 1:
            group = state.pop("param_groups")[0]
            state = {name: group[name] for name in self._options} | state
        return state

    def full_state(self):
        """What `state_dict` gives, with `param_groups` also where there is but one."""
        state = {"param_groups": self._group_states()}
        for name in self.slots:
            values = [self.slot(name, parameter) for parameter in self.params]
            state[f"{name}s"] = [None if value is None else self.vector.backend.to_host(value) for value in values]
        if self.counts_steps:
            state["steps"] = [self._counts.get(parameter, 0) for parameter in self.params]
        return state

    def _group_states(self):
        """The groups with the positions of their parameters."""
        positions = {parameter: position for position, parameter in enumerate(self.params)}
        return [group | {"params": [positions[parameter] for parameter in group["params"]]} for group in self.param_groups]

    def load_state_dict(self, state):
        """Take over what `state_dict` gave.

        Raises
        ------
        TypeError, ValueError
            When an entry is missing or does not fit. Nothing is changed then.
        """
        what, own = f"what {type(self).__name__}.state_dict() gives", self._group_states()
        state = dict(instance(state, "state", Mapping, what))
        lists = {name: state.pop(name, None) for name in [*(f"{slot}s" for slot in self.slots), *["steps"] * self.counts_steps]}
        if "param_groups" in state:
            groups, got = state.pop("param_groups"), list(state)
        else:       # one group, whose options stand by their names
            groups, got = [{**state, "initial_lr": state.get("lr"), "params": list(range(len(self.params)))}], []
        groups = [dict(instance(group, "state", Mapping, what)) for group in sequence(groups, "state", what)]
        if len(groups) != len(own):
            raise ValueError(f"state: expected {what} of {len(own)} groups, got {len(groups)}")
        got += sorted({name for group, theirs in zip(groups, own, strict=True) for name in group.keys() ^ theirs.keys()}, key=str)
        if got or any(value is None for value in lists.values()):
            raise ValueError(f"state: expected {what}, got missing or other entries {shown(got)}")
        for group, mine, theirs in zip(groups, self.param_groups, own, strict=True):
            if group["params"] != theirs["params"]:
                raise ValueError(f"state: expected a group of parameters {shown(theirs['params'])}, got {shown(group['params'])}")
            group["params"] = mine["params"]
        fresh = type(self)(groups, lr=groups[0]["lr"])
        fresh._fill(lists)
        for mine, theirs in zip(self.param_groups, fresh.param_groups, strict=True):
            mine.update(theirs)
        self._beside, self._counts, self._runs_for = fresh._beside, fresh._counts, None

    def _fill(self, lists):
        """Take over the lists of a state."""
        expected, counts = [parameter.shape for parameter in self.params], None
        if self.counts_steps:
            counts = [integer(count, "state", 0, INT64) for count in sequence(lists["steps"], "state", "a list of steps")]
        for name in self.slots:
            values = [None if value is None else numeric(value, "state")
                      for value in sequence(lists[f"{name}s"], "state", f"a list of {name.replace('_', ' ')}s")]
            shapes = [None if value is None else tuple(value.shape) for value in values]
            if len(shapes) != len(expected) or any(found not in (None, o) for found, o in zip(shapes, expected, strict=True)):
                raise ValueError(f"state: expected {name} of shapes {shown(expected)}, got {shown(shapes)}")
            counts = [int(value is not None) for value in values] if counts is None else counts
            if list(map(bool, counts)) != [value is not None for value in values]:
                raise ValueError(f"state: expected {name} of the parameters that were updated, got "
                                 f"{shown([value is not None for value in values])} for steps {shown(counts)}")
            for parameter, value in zip(self.params, values, strict=True):
                if value is not None:
                    parameter.write(self._slot(name)[parameter.start:parameter.stop], value)
        self._counts = {parameter: count for parameter, count in zip(self.params, counts, strict=True) if count}

    def __repr__(self):
        groups = f" in {len(self.param_groups)} groups" if len(self.param_groups) > 1 else ""
        return f"{type(self).__name__}({len(self.params)} parameters{groups}, {', '.join(map(self._shown, self._options))})"

    def _shown(self, name):
        """An option as `repr` shows it: a list where groups differ."""
        values = [group[name] for group in self.param_groups]
        return f"{name}={values[0] if all(value == values[0] for value in values) else values}"


def option(name):
    """A property: an option of the first group. Setting it sets that of every group."""
    def get(self):
        return self.param_groups[0][name]

    def set_all(self, value):
        changed = [group | self.checked(group | {name: value}) for group in self.param_groups]
        for group, new in zip(self.param_groups, changed, strict=True):
            group[name] = new[name]
    return property(get, set_all, doc=f"{name} of the first group; setting it sets every group's.")


def vector_of(params, name="params"):
    """The vector that parameters are part of; raises where that is not the same one of all."""
    vector = params[0].vector
    if vector is None or any(parameter.vector is not vector for parameter in params):
        raise ValueError(f"{name}: expected the Parameters of one nbcnn.Sequential; use one optimizer per model")
    return vector


def side_by_side(params, kind=lambda parameter: None):
    """[kind, first parameter, slice of the vectors] for each run of parameters in memory that are of one kind.

    The slice has the gaps between them, too, where data and gradients are 0.
    """
    runs = []
    for parameter in sorted(params, key=lambda parameter: parameter.start):
        align = parameter.vector.backend.ALIGNMENT // parameter.vector.data.dtype.itemsize
        if runs and runs[-1][0] == kind(parameter) and parameter.start == -(-runs[-1][2].stop // align) * align:
            runs[-1][2] = slice(runs[-1][2].start, parameter.stop)
        else:
            runs.append([kind(parameter), parameter, slice(parameter.start, parameter.stop)])
    return runs


def _groups(params):
    """`params`, of either form, as dicts with a list of `params`."""
    if callable(getattr(params, "parameters", None)):
        raise TypeError("params: expected a list of nbcnn Parameters, got a model; write model.parameters()")
    items = sequence(params, "params", "a list of nbcnn Parameters")
    if not items or not isinstance(items[0], Mapping):
        return [{"params": items}]
    groups = []
    for group in items:
        group = dict(instance(group, "params", Mapping, "groups alone, or Parameters alone"))
        if "params" not in group:
            raise ValueError(f"params: expected groups with an entry params, got one with {shown(list(group))}")
        own = group["params"]
        group["params"] = [own] if isinstance(own, Parameter) else sequence(own, "params", "a list of nbcnn Parameters")
        groups.append(group)
    return groups
