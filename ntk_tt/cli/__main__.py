from ntk_tt.cli.commands import main

main()
