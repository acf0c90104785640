// Where a host's keys are unless an option says otherwise: what `migrate keys` makes, in one folder.
#pragma once

#include <string>

namespace migrate::cli {

inline constexpr const char* kDefaultKeyDir = "/etc/migrate";
inline constexpr const char* kCaFile = "ca.crt";
inline constexpr const char* kHostCertificateFile = "host.crt";
inline constexpr const char* kHostKeyFile = "host.key";

/// `given`, or where it is empty the file `name` of the default folder.
inline std::string key_file(const std::string& given, const char* name) {
  return given.empty() ? std::string(kDefaultKeyDir) + "/" + name : given;
}

}  // namespace migrate::cli
