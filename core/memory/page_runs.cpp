#include "core/memory/page_runs.h"

#include <algorithm>

namespace migrate {
namespace {

uint64_t end_of(const PageRun& run) { return run.address + run.pages * kPageSize; }

}  // namespace

void append_run(std::vector<PageRun>& runs, const PageRun& run) {
  if (run.pages == 0) return;
  if (!runs.empty() && end_of(runs.back()) == run.address && runs.back().zero_ok == run.zero_ok) {
    runs.back().pages += run.pages;
  } else {
    runs.push_back(run);
  }
}

std::vector<PageRun> subtract_runs(std::span<const PageRun> a, std::span<const PageRun> b) {
  std::vector<PageRun> out;
  size_t at = 0;
  for (const PageRun& run : a) {
    uint64_t from = run.address;
    const uint64_t end = end_of(run);
    while (at < b.size() && end_of(b[at]) <= from) ++at;
    for (size_t i = at; i < b.size() && b[i].address < end; ++i) {
      if (b[i].address > from) append_run(out, {from, (b[i].address - from) / kPageSize, run.zero_ok});
      from = std::max(from, std::min(end, end_of(b[i])));
    }
    if (from < end) append_run(out, {from, (end - from) / kPageSize, run.zero_ok});
  }
  return out;
}

std::vector<PageRun> intersect_runs(std::span<const PageRun> a, std::span<const PageRun> b) {
  std::vector<PageRun> out;
  size_t at = 0;
  for (const PageRun& run : a) {
    while (at < b.size() && end_of(b[at]) <= run.address) ++at;
    for (size_t i = at; i < b.size() && b[i].address < end_of(run); ++i) {
      const uint64_t from = std::max(run.address, b[i].address), to = std::min(end_of(run), end_of(b[i]));
      append_run(out, {from, (to - from) / kPageSize, run.zero_ok});
    }
  }
  return out;
}

std::vector<PageRun> unite_runs(std::span<const PageRun> a, std::span<const PageRun> b) {
  std::vector<PageRun> all(a.begin(), a.end());
  all.insert(all.end(), b.begin(), b.end());
  std::sort(all.begin(), all.end(), [](const PageRun& x, const PageRun& y) { return x.address < y.address; });
  std::vector<PageRun> out;
  for (const PageRun& run : all) {
    const uint64_t from = out.empty() ? run.address : std::max(run.address, end_of(out.back()));
    if (end_of(run) > from) append_run(out, {from, (end_of(run) - from) / kPageSize});
  }
  return out;
}

uint64_t count_pages(std::span<const PageRun> runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.pages;
  return pages;
}

}  // namespace migrate
