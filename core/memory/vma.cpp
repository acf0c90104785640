#include "core/memory/vma.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <array>
#include <charconv>
#include <utility>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr std::array<std::pair<std::string_view, VmFlag>, 24> kFlagNames{{
    {"mw", VmFlag::may_write},
    {"sh", VmFlag::shared},
    {"gd", VmFlag::grows_down},
    {"pf", VmFlag::pfn_map},
    {"io", VmFlag::io},
    {"lo", VmFlag::locked},
    {"sr", VmFlag::sequential},
    {"rr", VmFlag::random},
    {"dc", VmFlag::dont_fork},
    {"nr", VmFlag::no_reserve},
    {"ht", VmFlag::hugetlb},
    {"wf", VmFlag::wipe_on_fork},
    {"dd", VmFlag::dont_dump},
    {"hg", VmFlag::huge_page},
    {"nh", VmFlag::no_huge_page},
    {"mg", VmFlag::mergeable},
    {"um", VmFlag::uffd_missing},
    {"uw", VmFlag::uffd_wp},
    {"ui", VmFlag::uffd_minor},
    {"ss", VmFlag::shadow_stack},
    {"sl", VmFlag::sealed},
    {"dp", VmFlag::droppable},
    {"mt", VmFlag::memory_tagging},
    {"lf", VmFlag::lock_on_fault},
}};

/// Takes numbers and separators off the front of a line.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : rest_(text) {}

  uint64_t number(int base) {
    uint64_t value = 0;
    const auto [end, ec] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value, base);
    if (ec != std::errc()) throw Corrupt("/proc/PID/smaps", "a number is missing");
    rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
    return value;
  }
  void expect(char c) {
    if (rest_.empty() || rest_.front() != c) throw Corrupt("/proc/PID/smaps", "a separator is missing");
    rest_.remove_prefix(1);
  }
  std::string_view take(size_t n) {
    if (rest_.size() < n) throw Corrupt("/proc/PID/smaps", "a line is too short");
    const std::string_view taken = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return taken;
  }
  std::string_view after_spaces() {
    const size_t at = rest_.find_first_not_of(' ');
    return at == std::string_view::npos ? std::string_view() : rest_.substr(at);
  }

 private:
  std::string_view rest_;
};

Vma parse_header(std::string_view line) {
  Cursor c(line);
  Vma v;
  v.range.start = RemoteAddr(c.number(16));
  c.expect('-');
  v.range.end = RemoteAddr(c.number(16));
  c.expect(' ');
  const std::string_view perms = c.take(4);
  if (perms[0] == 'r') v.prot |= PROT_READ;
  if (perms[1] == 'w') v.prot |= PROT_WRITE;
  if (perms[2] == 'x') v.prot |= PROT_EXEC;
  v.shared = perms[3] == 's';
  c.expect(' ');
  v.offset = c.number(16);
  c.expect(' ');
  const auto major_number = static_cast<unsigned>(c.number(16));
  c.expect(':');
  v.device = makedev(major_number, static_cast<unsigned>(c.number(16)));
  c.expect(' ');
  v.inode = c.number(10);
  v.name = c.after_spaces();
  if (v.shared) v.flags |= static_cast<uint32_t>(VmFlag::shared);
  if (v.range.end <= v.range.start) throw Corrupt("/proc/PID/smaps", "a range is empty");
  return v;
}

constexpr std::string_view kFlagsLine = "VmFlags:";

/// Calls `see` with each two-letter code of a VmFlags line.
template <class See>
void for_each_code(std::string_view line, See see) {
  for (size_t at = kFlagsLine.size(); at + 2 < line.size() + 1; at += 3) {
    while (at < line.size() && line[at] == ' ') ++at;
    if (at + 2 > line.size()) break;
    see(line.substr(at, 2));
  }
}

void parse_detail(std::string_view line, Vma& v) {
  if (line.starts_with(kFlagsLine)) {
    for_each_code(line, [&](std::string_view code) { v.flags |= vm_flag(code); });
  } else if (line.starts_with("ProtectionKey:")) {
    v.protection_key = static_cast<int>(Cursor(Cursor(line.substr(14)).after_spaces()).number(10));
  }
}

/// Headers begin with a lower-case hexadecimal number, details with a capital letter.
bool is_header(std::string_view line) {
  return (line.front() >= '0' && line.front() <= '9') || (line.front() >= 'a' && line.front() <= 'f');
}

/// But for empty ones.
template <class See>
void for_each_line(std::string_view text, See see) {
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (!line.empty()) see(line);
  }
}

std::string hex(uint64_t value) {
  std::array<char, 16> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value, 16).ptr;
  return std::string(text.data(), end);
}

}  // namespace

std::string Vma::link_name() const { return hex(range.start.get()) + "-" + hex(range.end.get()); }

std::string Vma::describe() const {
  return "mapping " + link_name() + (name.empty() ? std::string(" (anonymous)") : " (" + name + ")");
}

uint32_t vm_flag(std::string_view code) {
  for (const auto& [name, flag] : kFlagNames)
    if (code == name) return static_cast<uint32_t>(flag);
  return 0;
}

std::vector<Vma> parse_smaps(std::string_view text) {
  std::vector<Vma> all;
  for_each_line(text, [&](std::string_view line) {
    if (is_header(line)) {
      all.push_back(parse_header(line));
    } else if (!all.empty()) {
      parse_detail(line, all.back());
    }
  });
  return all;
}

void for_each_vm_flags(std::string_view smaps,
                       const std::function<void(const Vma& vma, std::set<std::string> codes)>& see) {
  Vma vma;
  for_each_line(smaps, [&](std::string_view line) {
    if (is_header(line)) vma = parse_header(line);
    if (!line.starts_with(kFlagsLine)) return;
    std::set<std::string> codes;
    for_each_code(line, [&](std::string_view code) { codes.emplace(code); });
    see(vma, std::move(codes));
  });
}

}  // namespace migrate
