"""Which cases of long parametrized tests `make test` runs; the others of the same function belong to `make check`.

A function that is not named here runs whole. What is kept are plain cases that fail for most mistakes; no claim's only
test is here.
"""

KEPT: dict[str, tuple[str, ...]] = {
    "tests/experiments/test_finetune.py::test_a_run_has_its_rows_and_tests_the_best_weights_once": (
        "hybrid", "one-sided", "log-search",
    ),
    "tests/experiments/test_finetune.py::test_saved_weights_load_in_plain_peft_and_transformers": ("hybrid-lora",),
    "tests/experiments/test_finetune_classifier.py::test_saved_classifiers_load_in_plain_peft_and_transformers": (
        "bert-hybrid-auto",
    ),
    "tests/experiments/test_finetune_classifier.py::test_what_a_method_trains_moves_and_nothing_else": (
        "opt-hybrid", "bert-zo",
    ),
    "tests/experiments/test_finetune_classifier.py::test_the_loss_falls_on_the_training_data": ("opt-hybrid",),
    "tests/experiments/test_finetune_classifier.py::test_killed_and_started_again_it_goes_on_to_the_bit": (),
    "tests/objectives/test_checks.py::test_every_objective_passes_every_check": ("E1", "E9"),
    "tests/objectives/test_checks.py::test_gradients_and_curvatures_found_are_within_the_bounds": ("E1", "E9"),
    "tests/objectives/test_families.py::test_any_two_families_with_any_coupling": (
        "quadratic-none", "quadratic-cosine", "low power-product",
    ),
    "tests/llm/test_adapters.py::test_every_block_is_differentiated_truly": (
        "lora-opt-moved", "lora-llama-moved", "prefix-opt-moved",
    ),
    "tests/llm/test_adapters.py::test_methods_with_right_derivatives_are_let_through_in_fp32": ("lora", "prefix"),
    "tests/llm/test_adapters_lm.py::test_batches_score_as_single_candidates_do": ("none-opt", "prefix-llama"),
    "tests/llm/test_partition.py::test_every_parameter_is_in_one_block": ("opt-part", "opt-layer", "opt-module"),
    "tests/llm/test_choices.py::test_published_sets_have_the_papers_sizes": ("copa", "wic", "winogrande", "wsc"),
    "tests/llm/test_heads.py::test_a_classifier_reads_sentences_alone_and_whole_prompts_of_pairs": ("builtin",),
    "tests/llm/test_heads.py::test_the_head_is_a_block_beside_a_module_and_in_the_base_without": (
        "opt-lora", "opt-none",
    ),
    "tests/llm/test_evaluate.py::test_micro_scores_the_published_tasks_as_one_by_one": ("copa",),
    "tests/llm/test_export.py::test_a_hybrids_adapter_comes_back_with_its_base_model": ("lora", "psoft"),
    "tests/zeroth/test_distributions.py::test_second_and_fourth_moments_are_the_distributions": (
        "gaussian", "sparse", "low rank",
    ),
    "tests/zeroth/test_estimators.py::test_sample_moments_are_the_closed_forms": (
        "two-sided gaussian", "one-sided gaussian", "two-sided sparse", "orthogonal",
    ),
    "tests/zeroth/test_estimators.py::test_all_modes_agree_to_the_bit": ("two-sided gaussian", "one-sided low rank"),
    "tests/zeroth/test_estimators.py::test_moments_that_are_wrong_by_a_third_fail": (
        "two-sided gaussian", "one-sided gaussian",
    ),
    "tests/hessian/test_hook.py::test_training_with_the_hook_is_training_without_it": ("exact-True",),
    "tests/test_main.py::test_plot_draws_each_kind": ("png-fig1a", "png-fig1b"),
    "tests/test_records.py::test_a_killed_process_is_continued_to_identical_records": ("1",),
}  # fmt: skip
"""Test -> identifiers of its cases in the first tier."""
