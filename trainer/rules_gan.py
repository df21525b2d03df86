"""What must hold of a generator and its critic: rules as in `trainer.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.adversarial import Game
from trainer.models.conv_critic import ConvCritic
from trainer.objectives.gan_spot import GanSpot
from trainer.places import Finding, Path, shown
from trainer.rules import Draft, Rule
from trainer.rules_joint import learning

_PARTS = {"maker": ("conv_generator", "makes no images"), "critic": ("conv_critic", "gives no single number a row")}


def _games(draft: Draft) -> Iterator[tuple[str, Path, Game]]:
    for name, task in draft.readable():
        path: Path = ("tasks", name, "objective")
        if task.objective is not None and isinstance(task.objective, Game) and draft.sound(path):
            yield name, path, task.objective


def models_play_their_parts(draft: Draft) -> Iterator[Finding]:
    """The generator makes images of the column's shape, the critic gives a number."""
    for name, path, game in _games(draft):
        for field, (kind, lacks) in _PARTS.items():
            model = draft.models.get(getattr(game, field))
            if model is not None and model.kind != kind and ":" not in model.kind:
                finding = f"model {shown(getattr(game, field))} ({model.kind}) {lacks}"
                yield Finding((*path, field), finding, f"name a model of kind {kind}, or one of your own")
        maker, task = draft.models.get(game.maker), draft.tasks[name]
        column = draft.column(task, task.target) if task is not None and task.target is not None else None
        shape = getattr(maker, "shape", None)
        if shape is not None and column is not None and column.kind == "image" and draft.sound(("models", game.maker)):
            wanted = list(column.expected()["shape"])
            if list(shape) != wanted:
                finding = f"makes images of shape {list(shape)}, and those of '{task.target}' have {wanted}"  # type: ignore[union-attr]
                yield Finding(("models", game.maker, "shape"), finding, f"write {wanted}")


def sides_agree(draft: Draft) -> Iterator[Finding]:
    """A generator has a critic that learns, and both play the same game."""
    games = list(_games(draft))
    spots = {game.critic: (name, game) for name, _, game in games if game.kind == "gan_spot"}
    for _, path, game in games:
        if game.kind != "gan_fool":
            continue
        if game.critic not in spots:
            if draft.complete("tasks") and game.critic in draft.models:
                finding = f"no task trains its critic {shown(game.critic)}"
                yield Finding((*path, "critic"), finding, "add a task with objective gan_spot for this critic")
            continue
        other, spot = spots[game.critic]
        for field, said in {"maker": "maker", "condition": "condition", "loss_kind": "loss"}.items():
            mine, theirs = getattr(game, field), getattr(spot, field)
            if mine != theirs:
                yield Finding((*path, said), f"is {mine!r}, and task '{other}' plays against {theirs!r}", "write the same in both")


def sides_learn_apart(draft: Draft) -> Iterator[Finding]:
    """What one side minimises never moves the other: each has a phase of its own."""
    games = {name: game for name, _, game in _games(draft)}
    for name, phase in draft.phases.items():
        found = learning(draft, phase) if phase is not None and draft.sound(("phases", name)) else None
        for task in draft.phase_tasks(phase) if phase is not None and found is not None else ():
            game = games.get(task)
            if game is None or found is None:
                continue
            wrong = (found[0] & {game.maker, game.critic}) - set(game.trains())
            if wrong:
                side = " and ".join(shown(model) for model in sorted(wrong))
                finding = f"trains {side} too, which task '{task}' ({game.kind}) would pull the wrong way"
                yield Finding(("phases", name), finding, f"give it a phase that trains {game.trains()[0]} alone, and `rounds` for turns")
                break


def slopes_are_bounded(draft: Draft) -> Iterator[Finding]:
    """The wasserstein loss has no least value unless something bounds the critic's slope."""
    for _, path, game in _games(draft):
        if not isinstance(game, GanSpot) or game.loss_kind != "wasserstein" or game.double_backward:
            continue
        critic = draft.models.get(game.critic)
        if isinstance(critic, ConvCritic) and not critic.spectral_norm and draft.sound(("models", game.critic)):
            finding = f"nothing bounds the slope of {shown(game.critic)}, so the wasserstein loss has no least value"
            yield Finding((*path, "loss"), finding, "write gradient_penalty: 10, or spectral_norm: true in the critic")


def singular_values_are_exact(draft: Draft) -> Iterator[Finding]:
    """Spectral normalisation keeps its singular vectors in float32, which torch can't multiply by weights of less."""
    train = draft.train
    if train is None or not draft.sound(("train", "precision")):
        return
    if train.precision == "fp32" or (train.precision == "auto" and not draft.gpus):
        return
    for name, model in draft.models.items():
        if isinstance(model, ConvCritic) and model.spectral_norm and draft.sound(("models", name)):
            finding = f"is '{train.precision}', and the spectral norms of model '{name}' need float32"
            remedy = "write fp32, or spectral_norm: false in the critic, with a penalty on its slope"
            yield Finding(("train", "precision"), finding, remedy)
            return


RULES: tuple[Rule, ...] = (models_play_their_parts, sides_agree, sides_learn_apart, slopes_are_bounded, singular_values_are_exact)
