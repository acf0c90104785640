#include "core/memory/vma_walk.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string_view>

#include "core/base/error.h"

namespace migrate {
namespace {

/// What the program writes for each mapping.
struct Record {
  uint64_t start, end, word;
};

/// The kernel's types.
class KernelTypes {
 public:
  KernelTypes() : btf_(::btf__load_vmlinux_btf(), ::btf__free) {}
  explicit operator bool() const { return ::libbpf_get_error(btf_.get()) == 0; }

  /// Negative: there is none.
  int find(const char* name, uint32_t kind) const { return ::btf__find_by_name_kind(btf_.get(), name, kind); }
  /// In bytes; negative: there is no such member, or it is a bit field. Looks into members without a name as well.
  int offset(int type, std::string_view member) const {
    const int bits = type < 0 ? -1 : bit_offset(static_cast<uint32_t>(type), member);
    return bits < 0 || bits % 8 != 0 ? -1 : bits / 8;
  }

 private:
  int bit_offset(uint32_t id, std::string_view name) const {
    const btf_type* type = ::btf__type_by_id(btf_.get(), id);
    if (type == nullptr || (!btf_is_struct(type) && !btf_is_union(type))) return -1;
    const btf_member* members = btf_members(type);
    for (uint16_t i = 0; i < btf_vlen(type); ++i) {
      const std::string_view label = ::btf__name_by_offset(btf_.get(), members[i].name_off);
      const auto offset = static_cast<int>(btf_member_bit_offset(type, i));
      if (label == name) return btf_member_bitfield_size(type, i) == 0 ? offset : -1;
      if (!label.empty()) continue;
      if (const int inner = bit_offset(members[i].type, name); inner >= 0) return offset + inner;
    }
    return -1;
  }

  std::unique_ptr<btf, void (*)(btf*)> btf_;
};

constexpr bpf_insn load(uint8_t to, uint8_t from, int offset) {
  return {BPF_LDX | BPF_MEM | BPF_DW, to, from, static_cast<int16_t>(offset), 0};
}
constexpr bpf_insn store(uint8_t to, int offset, uint8_t from) {
  return {BPF_STX | BPF_MEM | BPF_DW, to, from, static_cast<int16_t>(offset), 0};
}
constexpr bpf_insn set(uint8_t to, int value) { return {BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value}; }

/// Returns the program's descriptor; negative: it cannot be loaded.
int load_program() {
  const KernelTypes types;
  if (!types) return -1;
  const int target = types.find("bpf_iter_task_vma", BTF_KIND_FUNC);
  const int context = types.find("bpf_iter__task_vma", BTF_KIND_STRUCT);
  const int vma = types.find("vm_area_struct", BTF_KIND_STRUCT);
  const int meta_at = types.offset(context, "meta"), vma_at = types.offset(context, "vma");
  const int seq_at = types.offset(types.find("bpf_iter_meta", BTF_KIND_STRUCT), "seq");
  const int start_at = types.offset(vma, "vm_start"), end_at = types.offset(vma, "vm_end");
  const int word_at = types.offset(vma, "vm_flags");
  for (const int found : {target, meta_at, vma_at, seq_at, start_at, end_at, word_at})
    if (found < 0) return -1;

  // if (ctx->vma) { Record r = {...}; bpf_seq_write(ctx->meta->seq, &r, sizeof r); } return 0;
  constexpr int kRecord = -static_cast<int>(sizeof(Record));
  const std::array program{
      load(BPF_REG_6, BPF_REG_1, vma_at),
      bpf_insn{BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_6, 0, 12, 0},
      load(BPF_REG_7, BPF_REG_1, meta_at),
      load(BPF_REG_1, BPF_REG_7, seq_at),
      load(BPF_REG_2, BPF_REG_6, start_at),
      store(BPF_REG_10, kRecord, BPF_REG_2),
      load(BPF_REG_2, BPF_REG_6, end_at),
      store(BPF_REG_10, kRecord + 8, BPF_REG_2),
      load(BPF_REG_2, BPF_REG_6, word_at),
      store(BPF_REG_10, kRecord + 16, BPF_REG_2),
      bpf_insn{BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0},
      bpf_insn{BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, kRecord},
      set(BPF_REG_3, sizeof(Record)),
      bpf_insn{BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_seq_write},
      set(BPF_REG_0, 0),
      bpf_insn{BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
  };
  bpf_prog_load_opts options{};
  options.sz = sizeof options;
  options.expected_attach_type = BPF_TRACE_ITER;
  options.attach_btf_id = static_cast<uint32_t>(target);
  // The helper bpf_seq_write is for programs that say so.
  return ::bpf_prog_load(BPF_PROG_TYPE_TRACING, "migrate_vmas", "GPL", program.data(), program.size(), &options);
}

}  // namespace

std::optional<VmaWalk> VmaWalk::open() {
  // Otherwise libbpf writes to stderr what is expected here.
  ::libbpf_set_print(nullptr);
  const int program = load_program();
  if (program < 0) return std::nullopt;
  VmaWalk walk{Fd(program)};
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
  bpf_iter_link_info target{};
  target.task.tid = static_cast<uint32_t>(pid);
  bpf_link_create_opts options{};
  options.sz = sizeof options;
  options.iter_info = &target;
  options.iter_info_len = sizeof target;
  const Fd link(check(::bpf_link_create(program_.get(), 0, BPF_TRACE_ITER, &options), "attach", "the VMA iterator"));
  const Fd iterator(check(::bpf_iter_create(link.get()), "start", "the VMA iterator"));
  std::vector<VmaWord> all;
  std::vector<Record> records(4096);
  size_t filled = 0;  // bytes: a read may end within a record
  for (;;) {
    char* buffer = reinterpret_cast<char*>(records.data());
    const ssize_t n = ::read(iterator.get(), buffer + filled, records.size() * sizeof(Record) - filled);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (check(n, "read", "the VMA iterator") == 0) return all;
    filled += static_cast<size_t>(n);
    const size_t whole = filled / sizeof(Record);
    for (size_t i = 0; i < whole; ++i) {
      const RemoteRange range{RemoteAddr(records[i].start), RemoteAddr(records[i].end)};
      // What needed several reads has no end: the kernel (6.18) tells the last part again and again.
      if (!all.empty() && range.start < all.back().range.end) return all;
      all.push_back({range, records[i].word});
    }
    filled -= whole * sizeof(Record);
    std::memmove(buffer, buffer + whole * sizeof(Record), filled);
  }
}

}  // namespace migrate
