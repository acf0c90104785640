#include "lazypages/small_pages.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <set>
#include <span>
#include <string_view>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/types.h"

namespace migrate {
namespace {

/// Of "always within_size [never]"; "": the kernel has no such setting.
std::string chosen(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 256> text{};
  const std::string_view all(text.data(),
                             file ? read_full(file.get(), std::as_writable_bytes(std::span(text)), path) : 0);
  const size_t begin = all.find('['), end = all.find(']');
  return begin == std::string::npos || end == std::string::npos ? ""
                                                                : std::string(all.substr(begin + 1, end - begin - 1));
}

uint64_t blocks_of(int file) {
  struct stat status {};
  check(::fstat(file, &status), "look at", "shared memory");
  return static_cast<uint64_t>(status.st_blocks);
}

}  // namespace

bool makes_huge_pages(const std::string& settings) {
  // With advise a mapping must ask for it, and there is none where a file is allocated.
  static const std::set<std::string> kSmall{"", "never", "deny", "advise", "inherit"};
  if (!kSmall.contains(chosen(settings + "/shmem_enabled"))) return true;
  std::error_code none;
  for (const auto& size : std::filesystem::directory_iterator(settings, none))
    if (size.path().filename().string().starts_with("hugepages-") &&
        !kSmall.contains(chosen(size.path().string() + "/shmem_enabled")))
      return true;
  return false;
}

bool makes_huge_page_at(int file, uint64_t offset) {
  constexpr uint64_t kBlock = 512;
  const uint64_t before = blocks_of(file);
  check(::fallocate(file, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(kPageSize)), "allocate",
        "shared memory");
  return blocks_of(file) > before + kPageSize / kBlock;
}

}  // namespace migrate
