#include "core/files/extended_attributes.h"

#include <linux/limits.h>
#include <sys/xattr.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <string_view>

#include "core/base/error.h"
#include "ext/files.pb.h"

namespace migrate {
namespace {

bool is_the_owners(std::string_view name) {
  return name.starts_with("user.") || name == "system.posix_acl_access" || name == "system.posix_acl_default";
}

/// Given to each file by the host's own rules.
bool is_the_systems(std::string_view name) {
  constexpr std::array<std::string_view, 5> kNames{"security.selinux", "security.SMACK64", "security.apparmor",
                                                   "security.ima", "security.evm"};
  // Names of a file system's own say how it stores the file.
  const bool roots = name.starts_with("trusted.") || name.starts_with("security.");
  return !roots || std::ranges::find(kNames, name) != kNames.end();
}

/// nullopt: the file system has none. It may grow between the two calls.
std::optional<std::string> ask(auto call, const std::string& who) {
  std::string text;
  for (int tries = 0; tries < 16; ++tries) {
    const ssize_t size = call(nullptr, 0);
    if (size < 0 && (errno == EOPNOTSUPP || errno == ENODATA)) return std::nullopt;
    if (size < 0) throw Error("read the extended attributes of", who, errno);
    text.resize(static_cast<size_t>(size));
    const ssize_t got = size == 0 ? 0 : call(text.data(), text.size());
    if (got < 0 && errno == ENODATA) return std::nullopt;
    if (got < 0 && errno == ERANGE) continue;
    if (got < 0) throw Error("read the extended attributes of", who, errno);
    text.resize(static_cast<size_t>(got));
    return text;
  }
  throw Error("read the extended attributes of", who, ERANGE);
}

}  // namespace

ExtendedAttributes read_extended_attributes(const std::string& path, const std::string& who) {
  const auto names = ask([&](char* to, size_t size) { return ::listxattr(path.c_str(), to, size); }, who);
  ExtendedAttributes found;
  for (size_t at = 0; names && at < names->size();) {
    const std::string name(names->c_str() + at);
    at += name.size() + 1;
    if (!is_the_owners(name) && is_the_systems(name)) continue;
    if (!is_the_owners(name))
      throw Refusal(who + ", with the extended attribute " + name + ", which root alone may set", "close it first");
    auto value = ask([&](char* to, size_t size) { return ::getxattr(path.c_str(), name.c_str(), to, size); }, who);
    if (value) found.emplace(name, std::move(*value));
  }
  return found;
}

void write_extended_attributes(const ExtendedAttributes& attributes, uint32_t ghost_id, ImageSet& images) {
  if (attributes.empty()) return;
  ImageWriter out = images.write(kGhostAttributesImage, kGhostAttributesMagic);
  for (const auto& [name, value] : attributes) {
    ext::GhostAttribute entry;
    entry.set_ghost_id(ghost_id);
    entry.set_name(name);
    entry.set_value(value);
    out.entry(entry);
  }
}

std::map<uint32_t, ExtendedAttributes> read_ghost_attributes(const ImageSet& images) {
  std::map<uint32_t, ExtendedAttributes> all;
  auto reader = images.read(kGhostAttributesImage, kGhostAttributesMagic);
  for (ext::GhostAttribute e; reader && reader->next(e); e.Clear()) {
    if (!is_the_owners(e.name()) || e.name().size() > XATTR_NAME_MAX || e.value().size() > XATTR_SIZE_MAX ||
        e.name().find('\0') != std::string::npos)
      throw Corrupt(kGhostAttributesImage, "a deleted file has an impossible extended attribute");
    all[e.ghost_id()][e.name()] = e.value();
  }
  return all;
}

void set_extended_attributes(const std::string& path, const ExtendedAttributes& attributes, const std::string& what) {
  for (const auto& [name, value] : attributes)
    check(::setxattr(path.c_str(), name.c_str(), value.data(), value.size(), 0),
          "set the extended attribute " + name + " of", what);
}

}  // namespace migrate
