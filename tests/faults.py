"""Which tests prove that a fault costs nothing: `make faults` runs them and prints a row for each fault.

A test is FILE::NAME, with all its parameters. Each stands in the file of what it is about.
"""

from collections import defaultdict
from typing import NamedTuple


class Fault(NamedTuple):
    what: str
    tests: tuple[str, ...]


def _fault(what: str, *tests: str) -> Fault:
    return Fault(what, tests)


FAULTS = {
    "F1": _fault(
        "kill -9 of a Python worker amid encoding",
        "test_cluster.py::test_a_python_worker_killed_amid_encoding_changes_no_bit",
    ),
    "F2": _fault(
        "an image that always kills the decoder",
        "test_pass.py::test_an_image_that_always_kills_the_decoder_costs_its_own_row",
        "test_feed.py::test_a_crash_of_the_decoder_costs_one_row",
    ),
    "F3": _fault(
        "kill -9 of an executor", "test_cluster.py::test_an_executor_killed_amid_encoding_leaves_exactly_the_rows"
    ),
    "F4": _fault(
        "kill -9 of the driver, around every commit",
        "test_kills.py::test_a_kill_before_and_after_every_commit_of_every_stage",
        "test_kills.py::test_a_kill_between_pairs_and_inputs_doubles_nothing",
        "test_ingest.py::test_a_kill_before_the_ledger_of_metadata_is_written_makes_no_row_a_duplicate",
        "test_late.py::test_a_kill_before_any_write_costs_nothing",
        "test_kills.py::test_at_most_55_percent_of_the_calls_are_made_after_a_kill_at_half",
        "test_kills.py::test_the_tables_are_those_of_an_unbroken_run",
        "test_store.py::test_a_table_whose_making_was_killed_is_made_again_and_one_that_lost_its_log_is_not",
    ),
    "F5": _fault("SIGTERM, Ctrl-C", "test_kills.py::test_nothing_is_left_running_and_the_exit_code_is_not_zero"),
    "F6": _fault(
        "the disk is full",
        "test_faults.py::test_a_full_disk_under_shards_is_named_and_leaves_nothing",
        "test_faults.py::test_a_full_disk_under_tables_is_named_and_a_rerun_is_exact",
    ),
    "F7": _fault(
        "an export killed between members, a shard cut at a block",
        "test_export.py::test_a_killed_command_is_run_again_to_the_bytes_of_an_unbroken_one",
        "test_export.py::test_no_final_name_is_ever_without_a_row_and_the_next_run_makes_the_same_bytes",
        "test_shards.py::test_verify_finds_a_cut_at_each_block",
        "test_models_pairs.py::test_a_shard_that_is_not_its_manifest_s_is_refused",
    ),
    "F8": _fault(
        "two writers on one table",
        "test_store.py::test_a_second_writer_is_refused_with_the_holder_and_a_dead_one_holds_nothing",
        "test_store.py::test_of_several_who_append_one_content_at_the_same_time_one_does",
        "test_faults.py::test_two_processes_ingest_into_one_table_fifty_times",
    ),
    "F9": _fault(
        "the same input twice, reordered, overlapping",
        "test_ingest.py::test_the_same_again_writes_nothing_and_new_shards_alone_are_scanned",
        "test_ingest.py::test_the_first_of_a_uid_stays_across_chunks",
        "test_late.py::test_it_is_as_if_both_had_come_at_once",
        "test_features.py::test_the_first_of_a_uid_stays_and_a_row_without_one_gets_that_of_ingest",
    ),
    "F10": _fault(
        "schema drift, files that do not parse",
        "test_features.py::test_a_file_that_is_not_what_it_should_be_is_quarantined_with_a_reason_and_the_others_load",
        "test_lists.py::test_a_damage_ends_its_list_with_a_reason_and_what_came_before_stays",
        "test_lists.py::test_a_column_that_the_config_names_must_be_there",
        "test_ingest.py::test_columns_of_other_names",
    ),
    "F11": _fault(
        "weights missing, cut or altered",
        "test_cluster.py::test_a_machine_with_altered_weights_gives_no_vector",
        "test_models_encoder.py::test_altered_and_cut_weights_are_refused",
        "test_models_filters.py::test_altered_missing_and_foreign_weights_are_refused",
        "test_models_nsfw.py::test_cut_weights_are_refused_and_so_is_what_is_no_picture",
    ),
    "F12": _fault(
        "a model that yields NaN, a constant, other dims",
        "test_feed.py::test_a_model_that_gives_too_much_invalid_output_stops_the_run",
        "test_models_filters.py::test_unusable_vectors_score_nan_and_leave_the_others_alone",
        "test_models_canary.py::test_a_tower_that_computes_something_else_is_refused",
        "test_models_canary.py::test_other_vectors_than_before_are_refused_when_the_encoder_is_loaded",
    ),
    "F13": _fault(
        "out of memory on the device",
        "test_models_towers.py::test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered",
        "test_models_towers.py::test_what_never_fits_and_other_errors_are_raised",
    ),
    "F14": _fault(
        "nothing in, everything rejected",
        "test_run.py::test_an_empty_input_gives_empty_tables_with_the_right_schema",
        "test_ingest.py::test_an_empty_glob_makes_empty_tables",
        "test_selection.py::test_of_nothing_nothing_is_kept",
        "test_dedup.py::test_nothing_to_find",
        "test_spread.py::test_of_nothing_the_line_is_empty",
    ),
    "F15": _fault(
        "30 % of rows share a value; NULL keys",
        "test_dedup.py::test_the_ladder_is_the_reference",
        "test_dedup.py::test_no_task_gets_a_third_of_all_rows",
        "test_components.py::test_a_spread_join_is_the_join",
    ),
    "F16": _fault(
        "other partitions, another order",
        "test_dedup.py::test_the_ladder_is_the_reference",
        "test_selection.py::test_top_fraction_is_the_same_over_any_partitions_and_has_its_receipt",
        "test_semantic.py::test_groups_are_those_of_the_reference_on_any_partitions_order_and_grid",
        "test_sampling.py::test_the_draws_are_those_of_a_sort_over_any_partitions",
        "test_export.py::test_the_bytes_are_the_same_over_other_partitions",
    ),
    "F17": _fault(
        "bombs: pixels, strips, frames",
        "test_images.py::test_bombs_cost_neither_memory_nor_time",
        "test_images.py::test_the_caps_are_held_against_the_header",
        "test_pixels.py::test_caps_hold_before_anything_is_decoded",
        "test_pixels.py::test_a_thin_strip_is_resized_without_an_enormous_image_between",
    ),
    "F18": _fault(
        "thousands of damaged images",
        "test_faults.py::test_five_thousand_damaged_images_have_the_verdicts_of_pillow",
        "test_images.py::test_damage_raises_nothing_but_image_error",
        "test_pixels.py::test_damaged_bytes_get_the_verdict_of_pillow",
    ),
    "F19": _fault(
        "CMYK, palettes, 16 bit, orientation and the like",
        "test_images.py::test_each_kind_of_pixel_becomes_the_documented_rgb",
        "test_images.py::test_orientation_is_applied_as_pillow_says",
        "test_pixels.py::test_cmyk_and_16_bit_go_through_pillow",
    ),
    "F20": _fault(
        "what is no image, under an image's name",
        "test_images.py::test_what_is_not_an_allowed_image_meets_no_decoder",
        "test_images.py::test_the_sniffed_decoder_alone_is_tried_and_can_be_disallowed",
    ),
    "F21": _fault(
        "hostile captions",
        "test_shards.py::test_captions_are_taken_byte_for_byte_or_flagged",
        "test_ingest.py::test_every_status_with_all_that_is_known_of_its_row",
        "test_models_encoder.py::test_wild_captions_give_vectors",
        "test_stages.py::test_signals_of_a_megabyte_take_no_longer",
    ),
    "F22": _fault(
        "tars: cut, unsafe, lying",
        "test_shards.py::test_unsafe_members_are_named_and_what_follows_is_found",
        "test_shards.py::test_every_cut_of_a_tar_is_noticed",
        "test_shards.py::test_a_forged_header_neither_hangs_nor_leads_outside",
        "test_shards.py::test_a_member_over_the_cap_is_too_large",
        "test_shards.py::test_random_bytes_are_no_tar",
        "test_ingest.py::test_the_ledger_of_whole_and_broken_files",
    ),
    "F23": _fault(
        "WARC and WAT: cut, bombs, lies",
        "test_html.py::test_a_file_cut_anywhere_but_between_records_says_so_and_keeps_what_is_whole",
        "test_html.py::test_damage_costs_the_record_it_hits_and_not_the_rest",
        "test_html.py::test_a_wrong_length_costs_the_record_that_lies",
        "test_html.py::test_bombs_and_endless_pages_are_capped_in_memory_and_time",
        "test_html.py::test_any_bytes_are_a_page",
        "test_html.py::test_any_json_is_a_wat_record_or_none",
    ),
    "F24": _fault(
        "hostile servers",
        "test_fetch.py::test_each_vice_ends_with_its_status",
        "test_fetch.py::test_all_of_them_end_within_the_deadline_and_requests_are_counted",
        "test_fetch.py::test_no_request_reaches_a_blocked_target",
        "test_fetch.py::test_a_name_whose_address_changes_is_connected_to_where_it_was_allowed",
        "test_fetch.py::test_retry_after_is_obeyed_by_all_that_want_something_of_the_host",
        "test_fetch.py::test_robots_txt_is_asked_once_and_obeyed_with_evidence",
    ),
    "F25": _fault(
        "bytes that are not those of the index",
        "test_collect.py::test_bytes_that_are_not_those_of_the_index_are_in_no_shard",
    ),
    "F26": _fault(
        "takedown after the fact",
        "test_forget.py::test_rows_go_from_every_table_and_no_other_changes",
        "test_forget.py::test_nothing_that_is_left_names_them",
        "test_forget.py::test_the_ledgers_and_the_receipt_count_what_was_forgotten",
        "test_forget.py::test_the_same_content_stays_out_with_a_status",
        "test_forget_files.py::test_a_blanked_sample_is_gone_and_no_offset_moves",
        "test_forget_tiny.py::test_what_is_forgotten_is_in_no_file_of_a_whole_run",
    ),
    "F27": _fault(
        "MLflow down, a missing alias",
        "test_loop.py::test_where_mlflow_is_down_nothing_is_decided_and_the_round_ends",
        "test_rounds.py::test_a_round_whose_mlflow_server_is_killed_ends_and_is_decided_when_it_is_back",
        "test_models_spool.py::test_runs_outlive_a_killed_server_and_are_sent_once",
        "test_models_spool.py::test_failures_cost_thirty_seconds_in_all",
        "test_models_registry.py::test_versions_are_found_again_by_number_and_alias",
    ),
    "F28": _fault(
        "a killed rank, NaN loss, half a checkpoint",
        "test_models_loop.py::test_kill_9_at_a_random_step_and_the_same_command_again_gives_the_same_bits",
        "test_launch.py::test_a_killed_rank_under_torchdistributor_costs_no_bit",
        "test_models_loop.py::test_a_loss_that_is_no_number_aborts_and_the_last_checkpoint_stays",
        "test_models_loop.py::test_a_checkpoint_that_was_being_written_is_ignored_and_then_removed",
    ),
    "F29": _fault(
        "malicious checkpoints, arrays, members, artefacts",
        "test_models_loop.py::test_a_pickle_in_a_checkpoint_is_not_run",
        "test_models_pretrained.py::test_code_in_a_checkpoint_is_refused",
        "test_models_pretrained.py::test_code_in_an_array_is_refused_wherever_one_is_read",
        "test_models_pretrained.py::test_code_in_a_member_of_a_shard_is_refused_or_left_alone",
        "test_models_registry.py::test_a_pickled_model_is_not_loaded_and_its_payload_does_not_run",
    ),
    "F30": _fault("another time zone, another locale", "test_faults.py::test_time_zone_and_locale_change_no_row"),
    "F31": _fault("lost shuffle files", "test_faults.py::test_lost_shuffle_files_are_made_again_with_the_same_rows"),
    "F32": _fault(
        "secrets in URLs or config",
        "test_datacomp.py::test_credentials_come_from_the_environment_on_driver_and_executors_and_are_written_nowhere",
        "test_datacomp.py::test_a_credential_in_the_config_is_refused_and_not_repeated",
        "test_models_spool.py::test_a_password_is_in_no_message",
    ),
    "F33": _fault("a damaged Delta log", "test_faults.py::test_a_damaged_log_is_named_with_its_version_and_mended"),
    "F34": _fault(
        "mistakes in the config",
        "test_cli.py::test_a_mistake_in_the_config_is_one_line_and_exit_code_2",
        "test_cli.py::test_a_mistake_in_the_arguments_is_one_line_and_exit_code_2",
        "test_cli.py::test_a_mistake_is_told_on_a_machine_without_java",
    ),
    "connect": _fault(
        "security: only validated addresses, every hop, byte and time caps",
        "test_fetch.py::test_only_public_addresses_are_allowed",
        "test_fetch.py::test_a_name_at_a_blocked_address_is_not_connected_to",
        "test_fetch.py::test_a_certificate_that_nobody_vouches_for_is_refused",
    ),
    "code": _fault(
        "security: no pickle, eval, shell or unsafe yaml on any path",
        "test_style.py::test_the_repository_keeps_the_rule",
        "test_style.py::test_the_rule_finds_what_breaks_it_and_nothing_else",
    ),
    "reports": _fault(
        "security: reports escape what they show, and need no network",
        "test_report.py::test_hostile_text_is_inert_wherever_it_stands",
        "test_report.py::test_the_page_needs_no_network_and_no_script",
    ),
    "exif": _fault(
        "security: EXIF and GPS are stripped on export",
        "test_strip.py::test_metadata_goes_and_pixels_and_orientation_stay",
        "test_strip.py::test_damage_never_raises_and_what_decodes_still_decodes_alike",
    ),
    "fuzz": _fault(
        "any bytes: tar, captions, pages, lists, arrays, rules",
        "test_shards.py::test_random_bytes_are_no_tar",
        "test_html.py::test_any_bytes_are_a_page",
        "test_lists.py::test_any_bytes_end_with_a_line_in_the_ledger",
        "test_faults.py::test_any_bytes_are_a_list_of_uids_or_refused",
        "test_faults.py::test_anything_is_a_condition_or_refused",
    ),
}
NOT_TESTED: dict[str, str] = {}
"""Fault -> why it cannot be tested here."""


def test_of(nodeid: str) -> str:
    """FILE::NAME of a test, without folders, classes and parameters."""
    path, _, rest = nodeid.partition("::")
    return f"{path.rpartition('/')[2]}::{rest.partition('[')[0].rpartition('::')[2]}"


def table(reports) -> list[str]:
    """A line per fault from pytest's reports: passed, seconds; or which test failed, or did not run."""
    seconds: dict[str, float] = defaultdict(float)
    verdicts: dict[str, set[str]] = defaultdict(set)
    for report in reports:
        name = test_of(report.nodeid)
        seconds[name] += report.duration
        if report.when == "call" or report.outcome != "passed":
            verdicts[name].add(report.outcome)
    lines = []
    for name, fault in FAULTS.items():
        bad = {test: verdicts[test] or {"not run"} for test in fault.tests if verdicts[test] != {"passed"}}
        said = "; ".join(f"{test}: {', '.join(sorted(how))}" for test, how in bad.items())
        spent = sum(seconds[test] for test in fault.tests)
        lines.append(f"{name:<8} {'FAILED' if bad else 'passed'} {spent:7.1f} s  {fault.what}{said and ': ' + said}")
    return lines + [f"{name:<8} not tested: {why}" for name, why in NOT_TESTED.items()]
