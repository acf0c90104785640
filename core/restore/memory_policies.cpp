#include "core/restore/memory_policies.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <string>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/inject/attributes.h"
#include "core/inject/parasite_protocol.h"

namespace migrate {
namespace {

using restorer::Tag;

constexpr uint64_t kStaticNodes = 1 << 15, kRelativeNodes = 1 << 14;  // MPOL_F_*, linux/mempolicy.h
constexpr uint64_t kMostPolicy = 0xffff;
constexpr uint64_t kBitsOfWord = 65;  // set_mempolicy(2) and mbind(2) take one off

uint64_t told(const ext::ThreadExt& thread, uint32_t id) {
  const auto found = std::ranges::find_if(thread.attributes(), [&](const auto& t) { return t.id() == id; });
  return found == thread.attributes().end() ? 0 : found->value();
}

void check_nodes(const std::string& who, uint64_t mode, uint64_t nodes, uint64_t usable) {
  if (mode > kMostPolicy) throw Corrupt("migrate-ext.img", "a memory policy is impossible");
  const uint64_t missing = nodes & ~usable;
  if (missing == 0 || (mode & kRelativeNodes) != 0) return;
  if ((mode & kStaticNodes) != 0 && (nodes & usable) != 0) return;
  throw Refusal(who + " has a memory policy for NUMA node " + std::to_string(__builtin_ctzll(missing)) +
                    ", which has no memory for it here",
                "start the program without it (numactl(8), or an option of its own)");
}

}  // namespace

uint64_t nodes_of_list(std::string_view list) {
  constexpr uint64_t kNodes = 64;
  uint64_t nodes = 0;
  while (!list.empty() && list.back() == '\n') list.remove_suffix(1);
  while (!list.empty()) {
    const std::string_view part = list.substr(0, list.find(','));
    list.remove_prefix(std::min(part.size() + 1, list.size()));
    const size_t dash = std::min(part.find('-'), part.size());
    const uint64_t first = parse_number(part.substr(0, dash), "a list of nodes");
    const uint64_t last = dash == part.size() ? first : parse_number(part.substr(dash + 1), "a list of nodes");
    for (uint64_t node = first; node <= std::min(last, kNodes - 1); ++node) nodes |= uint64_t{1} << node;
  }
  return nodes;
}

uint64_t usable_nodes() {
  try {
    const auto status = ProcDir(::getpid()).status();
    const auto allowed = status.find("Mems_allowed_list");
    const uint64_t with_memory = nodes_of_list(read_file_at(AT_FDCWD, "/sys/devices/system/node/has_memory"));
    return allowed == status.end() ? with_memory : with_memory & nodes_of_list(allowed->second);
  } catch (const Error&) {  // a kernel without NUMA: it will refuse the calls itself
    return ~uint64_t{0};
  }
}

void check_policies(const TaskImage& task, uint64_t usable) {
  for (const auto& [tid, thread] : task.extra)
    check_nodes("thread " + std::to_string(tid), told(thread, kMemoryPolicy), told(thread, kMemoryPolicyNodes), usable);
  const auto& policies = task.task_extra().policies();
  if (policies.size() > static_cast<int>(parasite::kMostPolicies))
    throw Corrupt("migrate-ext.img", "it has too many memory policies");
  for (const ext::MappingPolicy& p : policies) {
    const bool fits = std::ranges::any_of(task.vmas, [&](const ImageVma& v) {
      return !v.kernel_made() && v.start <= p.start() && p.start() < p.end() && p.end() <= v.end;
    });
    if (!fits || p.start() % kPageSize != 0)
      throw Corrupt("migrate-ext.img", "the memory policy of a mapping is impossible");
    check_nodes("task " + std::to_string(task.pid), p.mode(), p.nodes(), usable);
  }
}

void plan_policies(const TaskImage& task, Region& region, OpList& list) {
  for (const ext::MappingPolicy& p : task.task_extra().policies()) {
    const uint64_t nodes = p.nodes() == 0 ? 0 : region.put_value(p.nodes());
    list.call(Tag::memory_policy, SYS_mbind,
              {p.start(), p.end() - p.start(), p.mode(), nodes, nodes == 0 ? 0 : kBitsOfWord, 0});
  }
}

/// One that the image does not have is the usual one, whatever the restoring process has.
void plan_policy(const ext::ThreadExt& thread, Region& region, OpList& list) {
  const uint64_t mode = told(thread, kMemoryPolicy), nodes = told(thread, kMemoryPolicyNodes);
  const uint64_t at = nodes == 0 ? 0 : region.put_value(nodes);
  list.call(Tag::memory_policy, SYS_set_mempolicy, {mode, at, nodes == 0 ? 0 : kBitsOfWord},
            mode != 0 ? 0 : restorer::kMayFail);
}

}  // namespace migrate
