// BPF iterators over what a task has (bpf(2), Linux 6.1 for those of one task): a small program of ours is run by the
// kernel for each, and writes what it wants to be known. Wants the kernel's type information (/sys/kernel/btf/vmlinux)
// and CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN.
#pragma once

#include <linux/bpf.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "core/base/fd.h"

struct btf;

namespace migrate {

/// The kernel's types. Reading them takes 10 to 20 ms.
class KernelTypes {
 public:
  KernelTypes();
  explicit operator bool() const;
  /// Negative: there is none.
  int function(const char* name) const;
  /// Where a struct has it, in bytes; negative: it does not, or it is a bit field. Looks into members without a name as
  /// well.
  int at(const char* type, std::string_view member) const;
  /// Not an array in place.
  bool is_pointer(const char* type, std::string_view member) const;

 private:
  struct Place {
    uint32_t bits, type;
    bool field;
  };
  std::optional<Place> find(const char* type, std::string_view member) const;
  std::optional<Place> find(uint32_t id, std::string_view member) const;

  std::unique_ptr<btf, void (*)(btf*)> btf_;
};

namespace bpf {

/// Eight bytes from what `from` points at.
constexpr bpf_insn load(uint8_t to, uint8_t from, int offset) {
  return {BPF_LDX | BPF_MEM | BPF_DW, to, from, static_cast<int16_t>(offset), 0};
}
constexpr bpf_insn load32(uint8_t to, uint8_t from, int offset) {
  return {BPF_LDX | BPF_MEM | BPF_W, to, from, static_cast<int16_t>(offset), 0};
}
constexpr bpf_insn store(uint8_t to, int offset, uint8_t from) {
  return {BPF_STX | BPF_MEM | BPF_DW, to, from, static_cast<int16_t>(offset), 0};
}
constexpr bpf_insn set(uint8_t to, int value) { return {BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value}; }
constexpr bpf_insn copy(uint8_t to, uint8_t from) { return {BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0}; }
constexpr bpf_insn add(uint8_t to, int value) { return {BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value}; }
constexpr bpf_insn call(int helper) { return {BPF_JMP | BPF_CALL, 0, 0, 0, helper}; }
/// Passes over `count` instructions if `a` is 0.
constexpr bpf_insn skip_if_zero(uint8_t a, int count) {
  return {BPF_JMP | BPF_JEQ | BPF_K, a, 0, static_cast<int16_t>(count), 0};
}
constexpr bpf_insn leave() { return {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}; }

/// nullopt: the kernel, or our capabilities, do not allow it. `target`: KernelTypes::function("bpf_iter_...").
std::optional<Fd> load_iterator(const char* name, int target, std::span<const bpf_insn> program);
/// Over what the thread `tid` has, as our pid namespace numbers it: `take` gets what the program wrote, `record_bytes`
/// at a time, until it returns false. Throws Error.
void iterate(const Fd& program, pid_t tid, size_t record_bytes,
             const std::function<bool(std::span<const std::byte> record)>& take);

}  // namespace bpf
}  // namespace migrate
