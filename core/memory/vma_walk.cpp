#include "core/memory/vma_walk.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <utility>

#include "core/base/bpf_iterator.h"
#include "core/base/error.h"

namespace migrate {
namespace {

/// What the program writes for each mapping.
struct Record {
  uint64_t start, end, word;
};

std::optional<Fd> load_program() {
  using namespace bpf;
  const KernelTypes types;
  if (!types) return std::nullopt;
  const int target = types.function("bpf_iter_task_vma");
  const int meta_at = types.at("bpf_iter__task_vma", "meta"), vma_at = types.at("bpf_iter__task_vma", "vma");
  const int seq_at = types.at("bpf_iter_meta", "seq");
  const int start_at = types.at("vm_area_struct", "vm_start"), end_at = types.at("vm_area_struct", "vm_end");
  const int word_at = types.at("vm_area_struct", "vm_flags");
  for (const int found : {target, meta_at, vma_at, seq_at, start_at, end_at, word_at})
    if (found < 0) return std::nullopt;

  // if (ctx->vma) { Record r = {...}; bpf_seq_write(ctx->meta->seq, &r, sizeof r); } return 0;
  constexpr int kRecord = -static_cast<int>(sizeof(Record));
  const std::array program{
      load(BPF_REG_6, BPF_REG_1, vma_at),
      skip_if_zero(BPF_REG_6, 12),
      load(BPF_REG_7, BPF_REG_1, meta_at),
      load(BPF_REG_1, BPF_REG_7, seq_at),
      load(BPF_REG_2, BPF_REG_6, start_at),
      store(BPF_REG_10, kRecord, BPF_REG_2),
      load(BPF_REG_2, BPF_REG_6, end_at),
      store(BPF_REG_10, kRecord + 8, BPF_REG_2),
      load(BPF_REG_2, BPF_REG_6, word_at),
      store(BPF_REG_10, kRecord + 16, BPF_REG_2),
      copy(BPF_REG_2, BPF_REG_10),
      add(BPF_REG_2, kRecord),
      set(BPF_REG_3, sizeof(Record)),
      call(BPF_FUNC_seq_write),
      set(BPF_REG_0, 0),
      leave(),
  };
  return load_iterator("migrate_vmas", target, program);
}

}  // namespace

std::optional<VmaWalk> VmaWalk::open() {
  std::optional<Fd> program = load_program();
  if (!program) return std::nullopt;
  VmaWalk walk{std::move(*program)};
  try {
    // Before Linux 6.1 the iterator knows no single task and begins with another one.
    const RemoteAddr here(reinterpret_cast<uint64_t>(&walk));
    for (const VmaWord& vma : walk.walk(::getpid()))
      if (vma.range.contains(here)) return walk;
  } catch (const Error&) {
  }
  return std::nullopt;
}

std::vector<VmaWord> VmaWalk::walk(pid_t pid) const {
  std::vector<VmaWord> all;
  bpf::iterate(program_, pid, sizeof(Record), [&](std::span<const std::byte> bytes) {
    Record record;
    std::memcpy(&record, bytes.data(), sizeof record);
    const RemoteRange range{RemoteAddr(record.start), RemoteAddr(record.end)};
    // What needed several reads has no end: the kernel (6.18) tells the last part again and again.
    if (!all.empty() && range.start < all.back().range.end) return false;
    all.push_back({range, record.word});
    return true;
  });
  return all;
}

}  // namespace migrate
