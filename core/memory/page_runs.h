// Sets of pages: runs that are ascending and disjoint.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "core/memory/page_io.h"

namespace migrate {

/// Pages of several memories.
using PagesByMemory = std::map<MemoryId, std::vector<PageRun>>;

/// Appends to a set that is built in ascending order; runs that touch and agree in zero_ok become one.
void append_run(std::vector<PageRun>& runs, const PageRun& run);
/// What is in `a` and not in `b`; zero_ok as in `a`.
std::vector<PageRun> subtract_runs(std::span<const PageRun> a, std::span<const PageRun> b);
/// What is in both; zero_ok as in `a`.
std::vector<PageRun> intersect_runs(std::span<const PageRun> a, std::span<const PageRun> b);
/// What is in either; zero_ok is lost (false).
std::vector<PageRun> unite_runs(std::span<const PageRun> a, std::span<const PageRun> b);
uint64_t count_pages(std::span<const PageRun> runs);

}  // namespace migrate
