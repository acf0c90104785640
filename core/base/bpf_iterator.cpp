#include "core/base/bpf_iterator.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "core/base/error.h"

namespace migrate {

KernelTypes::KernelTypes() : btf_(nullptr, ::btf__free) {
  // Otherwise libbpf writes to stderr what is expected here.
  ::libbpf_set_print(nullptr);
  btf_.reset(::btf__load_vmlinux_btf());
}

KernelTypes::operator bool() const { return ::libbpf_get_error(btf_.get()) == 0; }

int KernelTypes::function(const char* name) const { return ::btf__find_by_name_kind(btf_.get(), name, BTF_KIND_FUNC); }

int KernelTypes::at(const char* type, std::string_view member) const {
  const std::optional<Place> place = find(type, member);
  return place && !place->field && place->bits % 8 == 0 ? static_cast<int>(place->bits / 8) : -1;
}

bool KernelTypes::is_pointer(const char* type, std::string_view member) const {
  const std::optional<Place> place = find(type, member);
  const btf_type* of = place ? ::btf__type_by_id(btf_.get(), place->type) : nullptr;
  return of != nullptr && btf_is_ptr(of);
}

std::optional<KernelTypes::Place> KernelTypes::find(const char* type, std::string_view member) const {
  const int id = ::btf__find_by_name_kind(btf_.get(), type, BTF_KIND_STRUCT);
  return id < 0 ? std::nullopt : find(static_cast<uint32_t>(id), member);
}

std::optional<KernelTypes::Place> KernelTypes::find(uint32_t id, std::string_view member) const {
  const btf_type* type = ::btf__type_by_id(btf_.get(), id);
  if (type == nullptr || (!btf_is_struct(type) && !btf_is_union(type))) return std::nullopt;
  const btf_member* members = btf_members(type);
  for (uint16_t i = 0; i < btf_vlen(type); ++i) {
    const std::string_view label = ::btf__name_by_offset(btf_.get(), members[i].name_off);
    const uint32_t bits = btf_member_bit_offset(type, i);
    if (label == member) return Place{bits, members[i].type, btf_member_bitfield_size(type, i) != 0};
    if (!label.empty()) continue;
    if (auto inner = find(members[i].type, member)) {
      inner->bits += bits;
      return inner;
    }
  }
  return std::nullopt;
}

namespace bpf {

std::optional<Fd> load_iterator(const char* name, int target, std::span<const bpf_insn> program) {
  bpf_prog_load_opts options{};
  options.sz = sizeof options;
  options.expected_attach_type = BPF_TRACE_ITER;
  options.attach_btf_id = static_cast<uint32_t>(target);
  // The helper bpf_seq_write is for programs that say so.
  const int fd = ::bpf_prog_load(BPF_PROG_TYPE_TRACING, name, "GPL", program.data(), program.size(), &options);
  if (fd < 0) return std::nullopt;
  return Fd(fd);
}

void iterate(const Fd& program, pid_t tid, size_t record_bytes,
             const std::function<bool(std::span<const std::byte> record)>& take) {
  bpf_iter_link_info target{};
  target.task.tid = static_cast<uint32_t>(tid);
  bpf_link_create_opts options{};
  options.sz = sizeof options;
  options.iter_info = &target;
  options.iter_info_len = sizeof target;
  const Fd link(check(::bpf_link_create(program.get(), 0, BPF_TRACE_ITER, &options), "attach", "a BPF iterator"));
  bpf_link_info told{};
  __u32 size = sizeof told;
  check(::bpf_obj_get_info_by_fd(link.get(), &told, &size), "look at", "a BPF iterator");
  if (told.iter.task.tid != target.task.tid) throw Error("this kernel's iterators know no single task");  // before 6.1
  const Fd iterator(check(::bpf_iter_create(link.get()), "start", "a BPF iterator"));
  constexpr size_t kRecords = 4096;
  std::vector<std::byte> buffer(kRecords * record_bytes);
  size_t filled = 0;  // a read may end within a record
  for (;;) {
    const ssize_t n = ::read(iterator.get(), buffer.data() + filled, buffer.size() - filled);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (check(n, "read", "a BPF iterator") == 0) return;
    filled += static_cast<size_t>(n);
    std::span<const std::byte> rest(buffer.data(), filled);
    for (; rest.size() >= record_bytes; rest = rest.subspan(record_bytes))
      if (!take(rest.first(record_bytes))) return;
    filled = rest.size();
    std::memmove(buffer.data(), rest.data(), filled);
  }
}

}  // namespace bpf
}  // namespace migrate
