#include "launch/transport.h"

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace notellm {

// Variables are there for components that are open, and those that were not chosen are closed.
MpiComponents mpi_components() {
  MpiComponents found;
  int provided = 0, count = 0;
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS) return found;
  MPI_T_cvar_get_num(&count);
  for (int i = 0; i < count; ++i) {
    std::array<char, 256> name = {};
    int length = name.size(), verbosity = 0, bind = 0, scope = 0, no_text = 0;
    MPI_Datatype type;
    MPI_T_enum values;
    if (MPI_T_cvar_get_info(i, name.data(), &length, &verbosity, &type, &values, nullptr, &no_text, &bind, &scope) !=
        MPI_SUCCESS)
      continue;
    const std::string_view text = name.data();
    const std::string component(text.substr(std::min<size_t>(4, text.size()), text.find('_', 4) - 4));
    if (component == "base") continue;
    if (text.starts_with("pml_")) found.pml = component;
    if (text.starts_with("btl_") && std::ranges::find(found.btls, component) == found.btls.end())
      found.btls.push_back(component);
  }
  MPI_T_finalize();
  return found;
}

// ob1 takes vader for every rank of the host where it has it, and tcp for others where it has nothing else for them.
std::string transport_of(const MpiComponents& components, bool same_host) {
  if (components.pml.empty()) return "unknown (this MPI does not tell)";
  const auto has = [&](const char* btl) { return std::ranges::find(components.btls, btl) != components.btls.end(); };
  if (components.pml == "ob1" && same_host && has("vader")) return "shared memory (ob1, vader)";
  const bool only_tcp = std::ranges::all_of(
      components.btls, [](const std::string& btl) { return btl == "tcp" || btl == "self" || btl == "vader"; });
  if (components.pml == "ob1" && has("tcp") && only_tcp) return "TCP (ob1, tcp)";
  return fmt::format("unknown ({}{}{})", components.pml, components.btls.empty() ? "" : ": one of ",
                     fmt::join(components.btls, ", "));
}

}  // namespace notellm
