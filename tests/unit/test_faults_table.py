"""Every class of fault of a document, with the exact words that are said about it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import nets
from trainer.catalog import CATALOG
from trainer.check import load_spec
from trainer.errors import Fault, SpecError

GONE = ...  # a name that looks the same in every process
BALANCERS = ", ".join(sorted(CATALOG["balancer"]))
METRICS = ", ".join(sorted(CATALOG["metric"]))
DATASETS = ", ".join(sorted(CATALOG["dataset"].keys() - {"python"}))
NETS = ", ".join(sorted(name for name, part in vars(nets).items() if isinstance(part, type) and part.__module__ == nets.__name__))
GOOD = """\
name: job
data:
  digits:
    kind: digits
    columns: {image: {kind: image, shape: [1, 8, 8]}, digit: category, ink: number}
models:
  trunk: {kind: mlp, hidden: [32]}
tasks:
  digit: {data: digits, model: trunk, input: image, target: digit}
  ink: {data: digits, model: trunk, input: [image], target: ink, metrics: [r2, mae]}
phases:
  joint: {tasks: [digit, ink], epochs: 2}
train: {optimizer: {kind: adamw, lr: 0.0003}, batch: 64}
"""

# what is wrong, the change that makes it so, the place, the finding, the remedy
CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("field_missing", {"tasks.digit.target": GONE}, "tasks.digit.target", "is missing", "add it: column to predict"),
    ("section_missing", {"models": GONE}, "models", "is missing", "add it: models by name"),
    ("section_empty", {"phases": {}}, "phases", "is empty", "add one"),
    ("section_null", {"train": None}, "train", "null is not a mapping", "write a mapping"),
    ("section_of_the_wrong_type", {"tasks": ["digit"]}, "tasks", "a list of 1 is not a mapping", "write a mapping"),
    (
        "field_unknown",
        {"train.bach": 3},
        "train.bach",
        "no field is called 'bach'",
        "did you mean 'batch'? known: accumulate, batch, checkpoint, clip, early_stop, optimizer, precision, schedule, validate_every, zero",
    ),
    (
        "part_field_unknown",
        {"models.trunk.hiden": [3]},
        "models.trunk.hiden",
        "no field is called 'hiden'",
        "did you mean 'hidden'? known: activation, dropout, hidden, kind",
    ),
    (
        "part_unknown",
        {"phases.joint.balancer": "equall"},
        "phases.joint.balancer",
        "no balancer is called 'equall'",
        f"did you mean 'equal'? known: {BALANCERS}",
    ),
    (
        "part_of_a_mapping_unknown",
        {"train.optimizer.kind": "adam"},
        "train.optimizer",
        "no optimizer is called 'adam'",
        "did you mean 'adamw'? known: adamw, sgd",
    ),
    (
        "dataset_kind_unknown",
        {"data.digits.kind": "digit"},
        "data.digits",
        "no dataset is called 'digit'",
        f"did you mean 'digits'? known: {DATASETS}, or 'package.module:function'",
    ),
    (
        "column_kind_unknown",
        {"data.digits.columns.ink": "nubmer"},
        "data.digits.columns.ink",
        "no column is called 'nubmer'",
        "did you mean 'number'? known: boxes, category, image, number, text, vector",
    ),
    ("part_without_kind", {"train.optimizer": {"lr": 0.1}}, "train.optimizer", "says no 'kind'", "add kind; known: adamw, sgd"),
    (
        "part_of_the_wrong_type",
        {"phases.joint.mixer": 3},
        "phases.joint.mixer",
        "3 is no mixer",
        "write its kind, or a mapping with 'kind'; known: all, proportional, round_robin, temperature",
    ),
    (
        "job_name_bad",
        {"name": "My Job"},
        "name",
        "'My Job' can't be a name",
        "write a letter, then up to 39 of a-z, 0-9 and -, no - at the end",
    ),
    (
        "name_bad",
        {"tasks.Digit": {"data": "digits", "model": "trunk", "input": "image", "target": "digit"}},
        "tasks.Digit",
        "'Digit' can't be a name",
        "write a letter, then up to 39 of a-z, 0-9 and _",
    ),
    ("text_wanted", {"tasks.digit.target": 5}, "tasks.digit.target", "5 is not text", "quote it: '5'"),
    (
        "text_or_list_wanted",
        {"tasks.digit.input": {"a": 1}},
        "tasks.digit.input",
        "a mapping of 1 is not text or a list",
        "write text or a list",
    ),
    ("list_item_not_text", {"tasks.ink.input": ["image", None]}, "tasks.ink.input[1]", "null is not text", "write text"),
    ("whole_number_wanted", {"train.batch": 1.5}, "train.batch", "1.5 is not a whole number", "write a whole number"),
    ("number_wanted", {"train.clip": "much"}, "train.clip", "'much' is not a number", "write a number"),
    ("bool_is_no_number", {"train.batch": True}, "train.batch", "true is not a number", "write a number"),
    ("true_or_false_wanted", {"compare.independent": 3}, "compare.independent", "3 is not true or false", "write true or false"),
    ("nan", {"train.clip": float("nan")}, "train.clip", "nan is not a finite number", "write a finite number"),
    ("infinite", {"train.optimizer.lr": float("inf")}, "train.optimizer.lr", "inf is not a finite number", "write a finite number"),
    (
        "too_large_for_64_bits",
        {"train.zero": {"reduce_bucket_elements": 1000000000000000000000000000000}},
        "train.zero.reduce_bucket_elements",
        "a number of more than 20 digits is too large for a 64-bit integer",
        "write a smaller number",
    ),
    ("below_the_least", {"train.batch": 0}, "train.batch", "0 is less than 1", "write 1 or more"),
    ("above_the_most", {"train.batch": 1000000000}, "train.batch", "1000000000 is more than 10000000", "write 10000000 or less"),
    ("not_above", {"train.optimizer.lr": 0}, "train.optimizer.lr", "0 is not more than 0", "write more than 0"),
    ("not_below", {"train.optimizer.betas": [0.9, 1]}, "train.optimizer.betas[1]", "1 is not less than 1", "write less than 1"),
    ("tuple_too_short", {"train.optimizer.betas": [0.9]}, "train.optimizer.betas[1]", "is missing", "add it"),
    ("list_empty", {"models.trunk.hidden": []}, "models.trunk.hidden", "is empty", "add one"),
    (
        "value_unknown",
        {"train.precision": "float16"},
        "train.precision",
        "'float16' is not one of its values",
        "known: auto, bf16, fp16, fp32",
    ),
    ("zero_stage_unknown", {"train.zero": 4}, "train.zero", "4 is not one of its values", "write 0, 1, 2 or 3"),
    (
        "fields_that_do_not_fit",
        {"models.trunk": {"kind": "conv", "channels": [12], "groups": 8}},
        "models.trunk",
        "channels [12] are not divisible by groups 8",
        "change one of these values",
    ),
    ("control_characters", {"publish.store": "a\x00b"}, "publish.store", "'a\\x00b' holds characters that are no text", "remove them"),
    (
        "task_names_no_dataset",
        {"tasks.digit.data": "digit"},
        "tasks.digit.data",
        "no dataset is called 'digit'",
        "did you mean 'digits'? known: digits",
    ),
    (
        "task_names_no_model",
        {"tasks.digit.model": "trnk"},
        "tasks.digit.model",
        "no model is called 'trnk'",
        "did you mean 'trunk'? known: trunk",
    ),
    (
        "task_names_no_input_column",
        {"tasks.digit.input": "imge"},
        "tasks.digit.input",
        "dataset 'digits' has no column 'imge'",
        "did you mean 'image'? known: digit, image, ink",
    ),
    (
        "task_names_no_target_column",
        {"tasks.digit.target": "dgit"},
        "tasks.digit.target",
        "dataset 'digits' has no column 'dgit'",
        "did you mean 'digit'? known: digit, image, ink",
    ),
    ("input_twice", {"tasks.ink.input": ["image", "image"]}, "tasks.ink.input[1]", "column 'image' is named twice", "name it once"),
    (
        "target_among_inputs",
        {"tasks.ink.input": ["image", "ink"]},
        "tasks.ink.input[1]",
        "column 'ink' is the target too",
        "leave it out of the inputs",
    ),
    (
        "model_takes_no_such_kind",
        {"models.trunk": {"kind": "text_transformer"}, "tasks.ink": GONE, "phases.joint.tasks": ["digit"]},
        "tasks.digit.input",
        "model 'trunk' (text_transformer) can't take column 'image' of kind image",
        "name a column of kind text",
    ),
    (
        "model_takes_fewer_inputs",
        {"models.trunk": "conv", "tasks.ink.input": ["image", "digit"]},
        "tasks.ink.input",
        "names 2 columns, and model 'trunk' (conv) takes 1 column",
        "name 1 column",
    ),
    (
        "tasks_give_a_model_different_inputs",
        {"tasks.ink.input": ["image", "digit"]},
        "tasks.ink.input",
        "gives model 'trunk' (mlp) image, category, and task 'digit' gives it image",
        "give it image, or a model of its own",
    ),
    (
        "target_not_predicted",
        {
            "tasks.digit.target": "image",
            "tasks.digit.input": "ink",
            "tasks.ink.input": "digit",
            "tasks.ink.model": "other",
            "models.other": "mlp",
        },
        "tasks.digit.target",
        "column 'image' is of kind image, which is not predicted",
        "name a column of kind category or number",
    ),
    (
        "objective_not_for_target",
        {"tasks.digit.objective": "mse"},
        "tasks.digit.objective",
        "objective 'mse' is not made for 'digit', a category",
        "write cross_entropy, cross_teach, ensemble or fused",
    ),
    (
        "metric_not_for_target",
        {"tasks.ink.metrics": ["r2", "accuracy"]},
        "tasks.ink.metrics[1]",
        "metric 'accuracy' is not made for 'ink', a number",
        "write mae, r2, rmse or spearman",
    ),
    ("metric_twice", {"tasks.ink.metrics": ["r2", "r2"]}, "tasks.ink.metrics[1]", "metric 'r2' is named twice", "name it once"),
    ("phase_without_length", {"phases.joint.epochs": GONE}, "phases.joint", "says neither epochs nor steps", "add epochs or steps"),
    ("phase_with_two_lengths", {"phases.joint.steps": 10}, "phases.joint", "says both epochs (2) and steps (10)", "remove one of them"),
    (
        "phase_names_no_task",
        {"phases.joint.tasks": ["digit", "ink", "dgit"]},
        "phases.joint.tasks[2]",
        "no task is called 'dgit'",
        "did you mean 'digit'? known: digit, ink",
    ),
    (
        "phase_names_a_task_twice",
        {"phases.joint.tasks": ["digit", "ink", "digit"]},
        "phases.joint.tasks[2]",
        "task 'digit' is named twice",
        "name it once",
    ),
    (
        "phase_trains_no_such_model",
        {"phases.joint.train": ["trnk"]},
        "phases.joint.train[0]",
        "no model is called 'trnk'",
        "did you mean 'trunk'? known: trunk",
    ),
    (
        "phase_trains_a_model_twice",
        {"phases.joint.train": ["trunk", "trunk"]},
        "phases.joint.train[1]",
        "model 'trunk' is named twice",
        "name it once",
    ),
    (
        "phase_trains_an_unused_model",
        {
            "phases.joint.train": ["other"],
            "phases.joint.tasks": ["digit"],
            "phases.second": {"tasks": ["ink"], "epochs": 1},
            "tasks.ink.model": "other",
            "models.other": "mlp",
        },
        "phases.joint.train[0]",
        "no task of this phase uses model 'other'",
        "known: trunk",
    ),
    (
        "weight_of_no_task",
        {"phases.joint.balancer": {"kind": "static", "weights": {"digit": 1, "ink": 1, "inc": 1}}},
        "phases.joint.balancer.weights.inc",
        "no task of this phase is called 'inc'",
        "did you mean 'ink'? known: digit, ink",
    ),
    (
        "weight_missing",
        {"phases.joint.balancer": {"kind": "static", "weights": {"digit": 1}}},
        "phases.joint.balancer.weights",
        "no weight for 'ink'",
        "add a weight for ink",
    ),
    (
        "weights_all_zero",
        {"phases.joint.balancer": {"kind": "static", "weights": {"digit": 0, "ink": 0}}},
        "phases.joint.balancer.weights",
        "every weight is 0",
        "give a task a weight above 0",
    ),
    (
        "gradient_method_for_one_task",
        {"phases.joint.balancer": "upgrad", "phases.joint.tasks": ["digit"], "phases.second": {"tasks": ["ink"], "epochs": 1}},
        "phases.joint.balancer",
        "upgrad weighs the gradients of several tasks, and the phase has one",
        "write equal",
    ),
    (
        "gradient_method_and_nothing_shared",
        {"phases.joint.balancer": "upgrad", "tasks.ink.model": "other", "models.other": "mlp"},
        "phases.joint.balancer",
        "upgrad weighs gradients where tasks share a model, and here none do",
        "write equal, or share a model",
    ),
    (
        "gradient_method_and_the_shared_model_is_frozen",
        {"phases.joint.balancer": "mgda", "phases.joint.train": []},
        "phases.joint.balancer",
        "mgda weighs gradients of what tasks share, and this phase trains none of it",
        "write equal, or add trunk to train",
    ),
    (
        "gradient_method_and_one_task_a_step",
        {"phases.joint.balancer": "cagrad", "phases.joint.mixer": {"kind": "round_robin", "over": "tasks"}},
        "phases.joint.balancer",
        "cagrad weighs the gradients of one step, and mixer 'round_robin' gives each step one task",
        "write equal, or mixer: all",
    ),
    (
        "grad_drop_on_different_rows",
        {"phases.joint.balancer": "grad_drop", "tasks.ink.data": "others", "data.others": {"kind": "digits"}},
        "phases.joint.balancer",
        "grad_drop compares task gradients row by row, and no two tasks are on the same rows",
        "write pcgrad, with gram: last_layer",
    ),
    (
        "gram_for_a_method_of_losses",
        {"phases.joint.balancer": {"kind": "dwa", "gram": "last_layer"}},
        "phases.joint.balancer.gram",
        "dwa asks for no Gramian",
        "leave out gram, or choose a gradient method",
    ),
    (
        "gram_for_grad_drop",
        {"phases.joint.balancer": {"kind": "grad_drop", "gram": "representation"}},
        "phases.joint.balancer.gram",
        "grad_drop reads the task gradients at the representation themselves, and no Gramian",
        "leave out gram",
    ),
    (
        "layer_that_is_not_looked_at",
        {"phases.joint.balancer": {"kind": "upgrad", "gram": {"source": "representation", "layer": "layers.0"}}},
        "phases.joint.balancer.gram.layer",
        "the source 'representation' looks at no layer",
        "leave out layer, or write source: last_layer",
    ),
    (
        "layer_and_point",
        {"phases.joint.balancer": {"kind": "upgrad", "gram": {"source": "last_layer", "layer": "layers.0", "point": "layers"}}},
        "phases.joint.balancer.gram.point",
        "the layer is named already: 'layers.0'",
        "leave out point, or layer",
    ),
    (
        "layer_that_the_model_lacks",
        {"phases.joint.balancer": {"kind": "upgrad", "gram": {"source": "last_layer", "layer": "layers.2"}}},
        "phases.joint.balancer.gram.layer",
        "model 'trunk' has no linear or convolutional layer 'layers.2'",
        "did you mean 'layers.0'? known: layers.0",
    ),
    (
        "balance_point_that_the_model_lacks",
        {"phases.joint.balancer": {"kind": "nash_mtl", "gram": {"source": "representation", "point": ["flatten", "layer"]}}},
        "phases.joint.balancer.gram.point",
        "model 'trunk' has no module 'layer'",
        "did you mean 'layers'? known: flatten, layers, layers.0, layers.1",
    ),
    (
        "own_model_without_a_layer",
        {"phases.joint.balancer": "upgrad", "models.trunk": "balance_inputs:bare"},
        "phases.joint.balancer",
        "model 'trunk' has no linear or convolutional layer",
        "write gram: representation",
    ),
    (
        "steps_between_exact_gramians_that_are_not_made",
        {"phases.joint.balancer": {"kind": "upgrad", "gram": {"source": "last_layer", "every": 5}}},
        "phases.joint.balancer.gram.every",
        "the source 'last_layer' makes no exact Gramian",
        "leave out every, or write source: exact",
    ),
    (
        "dataset_unused",
        {"data.more": {"kind": "digits", "columns": {"ink": "number"}}},
        "data.more",
        "no task uses this dataset",
        "remove it",
    ),
    ("model_unused", {"models.other": "mlp"}, "models.other", "no task uses this model", "remove it"),
    ("task_unused", {"phases.joint.tasks": ["digit"]}, "tasks.ink", "no phase trains this task", "remove it"),
    (
        "offload_optimizer_unsharded",
        {"train.zero": {"offload_optimizer": "cpu"}},
        "train.zero.offload_optimizer",
        "ZeRO stage 0 has no sharded optimiser state to move",
        "set train.zero.stage to 1, 2 or 3",
    ),
    (
        "offload_param_unsharded",
        {"train.zero": {"stage": 2, "offload_param": "cpu"}},
        "train.zero.offload_param",
        "ZeRO stage 2 has no sharded parameters to move",
        "set train.zero.stage to 3",
    ),
    (
        "overlap_comm_unsharded",
        {"train.zero": {"overlap_comm": True}},
        "train.zero.overlap_comm",
        "ZeRO stage 0 reduces after the backward pass",
        "set train.zero.stage to 1, 2 or 3",
    ),
    (
        "fp16_on_cpus",
        {"train.precision": "fp16"},
        "train.precision",
        "fp16 needs GPUs, and cluster.gpus_per_node is 0",
        "write bf16 or fp32",
    ),
    (
        "batch_smaller_than_ranks",
        {"train.batch": 8, "train.accumulate": 4, "cluster": {"nodes": 3, "gpus_per_node": 1}},
        "train.batch",
        "8 rows don't give each of 3 ranks a row in 4 micro-batches",
        "write 12 or more",
    ),
    (
        "fewest_nodes_above_most",
        {"cluster": {"nodes": 2, "min_nodes": 3}},
        "cluster.min_nodes",
        "3 is more than the 2 of cluster.nodes",
        "write 2 or less",
    ),
    (
        "elastic_without_checkpoints",
        {"cluster": {"nodes": 3, "min_nodes": 2}, "train.checkpoint": {"every_minutes": None}},
        "cluster.min_nodes",
        "is less than cluster.nodes, and train.checkpoint saves nothing that the others could go on from",
        "set train.checkpoint.every_minutes",
    ),
    (
        "priority_without_queue",
        {"cluster": {"priority": "urgent"}},
        "cluster.priority",
        "'urgent' is a priority in a queue, and there is none",
        "set cluster.queue",
    ),
    (
        "champion_of_no_task",
        {"compare.gate.beat_champion": ["digits"]},
        "compare.gate.beat_champion[0]",
        "no task is called 'digits'",
        "did you mean 'digit'? known: digit, ink",
    ),
    (
        "champion_twice",
        {"compare.gate.beat_champion": ["ink", "ink"]},
        "compare.gate.beat_champion[1]",
        "task 'ink' is named twice",
        "name it once",
    ),
    (
        "worst_drop_unmeasured",
        {"compare": {"independent": False, "gate": {"worst_drop": 0.1}}},
        "compare.gate.worst_drop",
        "is measured against independent training, and compare.independent is false",
        "set compare.independent to true",
    ),
    ("store_unknown", {"publish.store": "gs://bucket/models"}, "publish.store", "no store takes 'gs://bucket/models'", "known: file, s3"),
    (
        "split_leaves_nothing",
        {"data.digits.split": {"valid": 0.5, "test": 0.5}},
        "data.digits.split",
        "valid (0.5) and test (0.5) leave no rows for training",
        "write shares whose sum is less than 1",
    ),
    (
        "one_class",
        {"data.digits.columns.digit": {"kind": "category", "classes": ["0"]}},
        "data.digits.columns.digit.classes",
        "a category needs two classes, and this is 1",
        "name every class, or none to take those of the rows",
    ),
    (
        "module_missing",
        {"models.trunk": {"kind": "no_such_package.nets:build"}},
        "models.trunk.kind",
        "there is no module 'no_such_package' in the Python path or the current folder",
        "install its package, or run where it lies",
    ),
    (
        "module_in_package_missing",
        {"models.trunk": {"kind": "trainer.nests:Mlp"}},
        "models.trunk.kind",
        "there is no module 'trainer.nests' in package 'trainer'",
        "install its package, or run where it lies",
    ),
    (
        "function_missing",
        {"models.trunk": "trainer.nets:Mpl"},
        "models.trunk",
        "module 'trainer.nets' defines no 'Mpl'",
        f"did you mean 'Mlp'? known: {NETS}",
    ),
]

TEXTS = [
    ("a key is given twice", GOOD + "name: other\n", "job.yaml: name", "is given twice, in lines 1 and 14", "keep one of them"),
    ("a key is no text", GOOD.replace("  joint:", "  1:"), "job.yaml: phases.1", "the key 1 in line 12 is not text", "quote it: '1'"),
    (
        "a key is a list",
        GOOD + "? [a, b]\n: 1\n",
        "job.yaml: ['?']",
        "the key in line 14 is a list or a mapping, not text",
        "write text before the colon",
    ),
    (
        "a merge key",
        GOOD + "cluster: {<<: {nodes: 1}}\n",
        "job.yaml: cluster['<<']",
        "the merge key '<<' in line 14 is not read here",
        "write the merged keys out",
    ),
    (
        "a tag",
        GOOD.replace("batch: 64", "batch: !!python/object/apply:os.getcwd []"),
        "job.yaml: train.batch",
        "the tag '!!python/object/apply:os.getcwd' in line 13 is not read here",
        "remove the tag",
    ),
    ("a date is text here", GOOD + "seed: 2020-01-01\n", "job.yaml: seed", "'2020-01-01' is not a whole number", "write a whole number"),
    (
        "bad syntax",
        GOOD + "cluster: {nodes: 1\n",
        "job.yaml: line 15",
        "is no YAML: while parsing a flow mapping expected ',' or '}', but got '<stream end>'",
        "correct the syntax there",
    ),
    (
        "a tab",
        "name: job\ndata:\n\tdigits: 1\n",
        "job.yaml: line 3",
        "is no YAML: while scanning for the next token found character '\\t' that cannot start any token",
        "correct the syntax there",
    ),
    ("a control character", "name: \x01\n", "job.yaml: line 1", "holds the character '\\x01'", "remove it"),
    ("nothing", "# nothing\n", "job.yaml", "is empty", "write a mapping that starts with 'name: '"),
    ("a list", "- 1\n- 2\n", "job.yaml", "holds a list of 2, not a mapping", "write a mapping that starts with 'name: '"),
    (
        "two documents",
        GOOD + "---\n" + GOOD,
        "job.yaml: line 14",
        "is no YAML: expected a single document in the stream but found another document",
        "correct the syntax there",
    ),
    ("too deep", "name: " + "[" * 100 + "\n", "job.yaml: line 1", "is nested more than 32 levels deep", "write it flatter"),
    (
        "an alias bomb",
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
        "job.yaml",
        "holds more than 100000 values, aliases written out",
        "use fewer aliases",
    ),
    ("an alias of itself", "name: &a [*a]\n", "job.yaml", "is nested more than 32 levels deep", "write it flatter"),
    ("too large", "#" * (1 << 20) + "\n", "job.yaml", "is larger than 1048576 bytes", "give the document, not the data"),
]

SETS = [
    (
        "train.bach=3",
        "--set train.bach",
        "no field is called 'bach'",
        "did you mean 'batch'? known: accumulate, batch, checkpoint, clip, early_stop, optimizer, precision, schedule, validate_every, zero",
    ),
    (
        "trian.batch=3",
        "--set trian",
        "no field is called 'trian'",
        "did you mean 'train'? known: cluster, compare, data, models, name, observe, phases, publish, rounds, seed, seeds, tasks, train",
    ),
    ("tasks.dgit.model=trunk", "--set tasks.dgit.model", "no task is called 'dgit'", "did you mean 'digit'? known: digit, ink"),
    ("train.batch=many", "--set train.batch", "'many' is not a whole number", "write a whole number"),
    ("tasks.ink.metrics.7=r2", "--set tasks.ink.metrics.7", "there is no item 7 in a list of 2", "write a position from 0 to 2"),
    (
        "tasks.ink.metrics.0=acuracy",
        "--set tasks.ink.metrics[0]",
        "no metric is called 'acuracy'",
        f"did you mean 'accuracy'? known: {METRICS}",
    ),
    ("train.batch.size=3", "--set train.batch.size", "train.batch holds 64, which has no fields", "set it as a whole"),
    (
        "phases.joint.tasks=[digit",
        "--set phases.joint.tasks",
        "the value is no YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'",
        "quote the value as YAML wants it",
    ),
    ("batch", "--set batch", "is not of the form path=value", "write it like --set train.batch=128"),
]


def faults(source: Any, sets: tuple[str, ...] = ()) -> list[Fault]:
    with pytest.raises(SpecError) as caught:
        load_spec(source, sets)
    return list(caught.value.faults)


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    document = yaml.safe_load(GOOD)
    for dots, value in changes.items():
        *parents, last = dots.split(".")
        node = document
        for key in parents:
            node = node.setdefault(key, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return document


@pytest.mark.parametrize(("changes", "place", "finding", "remedy"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_fault_is_said_in_these_words_and_no_others(changes, place, finding, remedy):
    assert faults(changed(changes)) == [Fault(f"document: {place}", finding, remedy)]


@pytest.mark.parametrize(("text", "place", "finding", "remedy"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_a_text_that_is_no_document_is_refused_in_these_words(text, place, finding, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(text)
    assert faults("job.yaml") == [Fault(place, finding, remedy)]


@pytest.mark.parametrize(("change", "place", "finding", "remedy"), SETS, ids=[case[0] for case in SETS])
def test_a_change_from_the_command_line_is_blamed_by_its_own_path(change, place, finding, remedy):
    assert faults(yaml.safe_load(GOOD), (change,)) == [Fault(place, finding, remedy)]


def test_the_example_of_the_style_guide_is_printed_as_it_stands_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mutual.yaml").write_text(yaml.safe_dump(changed({"phases.joint.balancer": "unifrom"}), sort_keys=False))
    with pytest.raises(SpecError) as caught:
        load_spec("mutual.yaml")
    assert str(caught.value) == ("mutual.yaml: phases.joint.balancer: no balancer is called 'unifrom'\n    fix: known: " + BALANCERS)


def test_ten_faults_are_reported_at_once_and_in_the_order_of_the_document():
    document = changed(
        {
            "name": "My Job",
            "data.digits.split": {"valid": 0.6, "test": 0.6},
            "models.trunk.hidden": [0, 32, "wide"],
            "tasks.digit.target": "dgit",
            "tasks.digit.objective": "entropy",
            "tasks.ink.target": GONE,
            "tasks.ink.model": "trnk",
            "phases.joint.steps": 5,
            "train.zero": {"stage": 1, "offload_param": "cpu"},
            "train.bach": 3,
            "publish": {"store": "gs://models"},
        }
    )
    assert [fault.place.removeprefix("document: ") for fault in faults(document)] == [
        "name",
        "data.digits.split",
        "models.trunk.hidden[0]",
        "models.trunk.hidden[2]",
        "tasks.digit.target",
        "tasks.digit.objective",
        "tasks.ink.model",
        "tasks.ink.target",
        "phases.joint",
        "train.zero.offload_param",
        "train.bach",
        "publish.store",
    ]


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"data.digits": 3}, ["data.digits"]),
        ({"data.digits.kind": "digit"}, ["data.digits"]),
        ({"models.trunk": {"kind": "mlpp"}}, ["models.trunk"]),
        ({"tasks.ink": "ink"}, ["tasks.ink"]),
        ({"data": GONE}, ["data"]),
        ({"models": []}, ["models"]),
        ({"tasks": {}}, ["tasks"]),
        ({"phases": None}, ["phases"]),
        ({"data.digits.columns.image": {"kind": "image"}}, ["data.digits.columns.image.shape"]),
        ({"phases.joint.tasks": ["digit", 5]}, ["phases.joint.tasks[1]"]),
        ({"phases.joint.balancer": {"kind": "static"}}, ["phases.joint.balancer.weights"]),
        ({"cluster": {"nodes": 0}, "train.batch": 1}, ["cluster.nodes"]),
        ({"train.optimizer.betas": [0.9, 1, 2, 3]}, ["train.optimizer.betas"]),
        ({"tasks.ink.data": "digit", "tasks.ink.input": "x"}, ["tasks.ink.data"]),
    ],
    ids=str,
)
def test_what_is_broken_is_blamed_once_and_not_on_those_who_name_it(changes, blamed):
    assert [fault.place.removeprefix("document: ") for fault in faults(changed(changes))] == blamed


def test_a_document_is_named_as_it_was_given(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(changed({"seed": -1})))
    assert faults(path) == [Fault(f"{path}: seed", "-1 is less than 0", "write 0 or more")]


def test_a_missing_file_is_met_with_the_nearest_name(tmp_path):
    (tmp_path / "digits.yaml").write_text(GOOD)
    assert faults(tmp_path / "digit.yaml") == [
        Fault(f"{tmp_path}/digit.yaml", "there is no such document", "did you mean 'digits.yaml'? known: digits.yaml")
    ]


def test_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "job.yaml").write_bytes(b"name: job\nmodels: \xff\n")
    assert faults(tmp_path) == [Fault(str(tmp_path), "can't be read: is a directory", "give the path of a readable file")]
    assert faults(tmp_path / "job.yaml") == [Fault(f"{tmp_path}/job.yaml: line 2", "is not UTF-8 (byte 0xff)", "save it as UTF-8")]


def test_json_that_gives_a_key_twice_is_refused():
    assert faults('{"name": "a", "name": "b"}') == [Fault("document", "gives the key 'name' twice in one object", "keep one of them")]
